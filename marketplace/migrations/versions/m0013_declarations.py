"""What organisations declare: shareholders with their shares, address and telephone."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("organisation") as table:
        table.add_column(sa.Column("shareholders", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("address", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("phone", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("organisation") as table:
        for name in ("shareholders", "address", "phone"):
            table.drop_column(name)
