"""One payment pays one batch, kept by the database too: the reference as it is compared, unique where there is one.

Batches that clash already: one has the reference from now on, a paid one before one that is only entered, then the
oldest. The others keep their payment as it was entered or confirmed and have no key: no paid money is moved here, and a
payment that is not confirmed yet is refused (`PAYMENT_TWICE`) when it is. Each is named in a warning of the log.
"""

import logging
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_BATCH = sa.table(
    "claim_batch",
    *(sa.column(name) for name in ("id", "state", "created_at_ms", "payment_key")),
    sa.column("payment", sa.JSON()),
)
_ORDER = {"reconciled": 0, "paid": 0, "paying": 1}
_STANDS = sa.text("payment_key IS NOT NULL")
_log = logging.getLogger("algomart.migrations")


def upgrade() -> None:
    op.add_column("claim_batch", sa.Column("payment_key", sa.String(), nullable=True))
    bind, taken = op.get_bind(), dict[str, str]()
    rows = bind.execute(sa.select(_BATCH).where(_BATCH.c.state.in_(tuple(_ORDER)))).all()
    for row in sorted(rows, key=lambda row: (_ORDER[row.state], row.created_at_ms, row.id)):
        key = spelled((row.payment or {}).get("reference", ""))
        if not key:
            continue
        if key in taken:
            _log.warning(
                "claim batches %s and %s (%s) have one payment reference, %r: one payment pays one batch; look at them",
                taken[key], row.id, row.state, row.payment["reference"],
            )  # fmt: skip
            continue
        taken[key] = row.id
        bind.execute(sa.update(_BATCH).where(_BATCH.c.id == row.id).values(payment_key=key))
    op.create_index(
        "claim_payment_once",
        "claim_batch",
        ["payment_key"],
        unique=True,
        sqlite_where=_STANDS,
        postgresql_where=_STANDS,
    )


def spelled(reference: str) -> str:
    """As `claims.batches` compared it when this was written: without spaces, width or case."""
    return "".join(unicodedata.normalize("NFKC", reference).split()).casefold()


def downgrade() -> None:
    op.drop_index("claim_payment_once", "claim_batch")
    op.drop_column("claim_batch", "payment_key")
