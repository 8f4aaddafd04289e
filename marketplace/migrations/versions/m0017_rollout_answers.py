"""From when on a canary is taken back for what it answers."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_COLUMNS = ("max_decisions_changed_percent", "max_difference_percent")


def upgrade() -> None:
    for name in _COLUMNS:
        op.add_column("rollout", sa.Column(name, sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in _COLUMNS:
        op.drop_column("rollout", name)
