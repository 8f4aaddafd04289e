"""The scope `manage`: keys, contracts and voucher applications, which every key could do before.

A key that had all scopes of its kind keeps doing all; a narrower one no longer manages.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ALL_BEFORE = frozenset({"use", "choose", "adapt", "publish"})


def upgrade() -> None:
    keys = sa.table("api_key", sa.column("id", sa.String), sa.column("scopes", sa.JSON))
    bind = op.get_bind()
    for key_id, scopes in bind.execute(sa.select(keys.c.id, keys.c.scopes)).fetchall():
        if _ALL_BEFORE.issubset(scopes):
            bind.execute(keys.update().where(keys.c.id == key_id).values(scopes=[*scopes, "manage"]))


def downgrade() -> None:
    """Nothing to take back: the code before knows no such scope and passes over it."""
