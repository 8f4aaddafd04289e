"""Tranches that wait for an approval of their own, by two persons. Stored programmes ask for none."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('proposed', 'approved')")


def upgrade() -> None:
    op.create_table(
        "tranche_approval",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("programme_id", sa.String(), nullable=False),
        sa.Column("tranche", sa.String(), nullable=False),
        sa.Column("fen", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("proposed_by", sa.String(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["programme_id"], ["programme.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_tranche_approval_programme_id", "tranche_approval", ["programme_id"])
    op.create_index(
        "tranche_approval_live",
        "tranche_approval",
        ["programme_id", "tranche"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )


def downgrade() -> None:
    op.drop_table("tranche_approval")
