"""Programmes from before `contract_once` had an effect go on as they did: until now every stored file said yes to it
by default, and nothing read it."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_PROGRAMME = sa.table("programme", sa.column("id", sa.String()), sa.column("document", sa.JSON()))


def upgrade() -> None:
    bind = op.get_bind()
    for row in bind.execute(sa.select(_PROGRAMME)).all():
        if "contract_once" in row.document:
            document = {**row.document, "contract_once": False}
            bind.execute(sa.update(_PROGRAMME).where(_PROGRAMME.c.id == row.id).values(document=document))


def downgrade() -> None:
    """Nothing reads it before 0018."""
