"""The filing that each use was under, as its lease says. What was ingested before has none recorded (NULL)."""

import sqlalchemy as sa
from alembic import op

from marketplace.ledger import guards

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # the guard names the columns that it keeps, and SQLite has no way to replace a trigger
    guards.remove(op.get_bind())
    op.add_column("usage", sa.Column("filing_id", sa.String(), nullable=True))
    guards.install(op.get_bind())


def downgrade() -> None:
    guards.remove(op.get_bind())
    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.drop_column("filing_id")
    guards.install(op.get_bind())
