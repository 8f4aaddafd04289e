"""Limits of a key: calls a second, of those at once, calls in hand. Keys made before have none of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = ("rate_per_s", "burst", "concurrency")


def upgrade() -> None:
    with op.batch_alter_table("api_key") as table:
        for name in _COLUMNS:
            table.add_column(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("api_key") as table:
        for name in _COLUMNS:
            table.drop_column(name)
