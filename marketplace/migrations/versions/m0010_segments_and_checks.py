"""Journal segments as leaves of days, the nightly checks, and the index that a day's leaves are found by."""

import sqlalchemy as sa
from alembic import op

from marketplace.ledger import guards

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("day_root", sa.Column("layout", sa.BigInteger(), nullable=False, server_default="1"))
    op.add_column("day_root", sa.Column("segments", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "journal_segment",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("recorded_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", "epoch", "kind", "bytes"),
    )
    op.create_index("ix_journal_segment_recorded_at_ms", "journal_segment", ["recorded_at_ms"])
    op.create_table(
        "ledger_check",
        sa.Column("id", _BIG_ID, autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("sound", sa.Boolean(), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("transfers", "entries", "accounts", "caps", "last_transfer")
        ),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("kept_sha256", sa.String(), nullable=False),
        sa.Column("wrong_count", sa.BigInteger(), nullable=False),
        sa.Column("wrong", sa.JSON(), nullable=False),
        sa.Column("took_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_ledger_check_at_ms", "ledger_check", ["at_ms"])
    op.create_index("ix_ledger_transfer_posted_at_ms", "ledger_transfer", ["posted_at_ms"])
    guards.install(op.get_bind())


def downgrade() -> None:
    for table in ("day_root", "journal_segment", "ledger_check"):
        for verb in ("update", "delete"):
            on = f" ON {table}" if op.get_bind().dialect.name == "postgresql" else ""
            op.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}{on}")
    op.drop_index("ix_ledger_transfer_posted_at_ms", "ledger_transfer")
    op.drop_table("ledger_check")
    op.drop_table("journal_segment")
    op.drop_column("day_root", "segments")
    op.drop_column("day_root", "layout")
