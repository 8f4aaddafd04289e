"""Versions in traffic: a canary's share and a shadow, by listing."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollout",
        sa.Column("listing_id", sa.String(), nullable=False),
        sa.Column("stable", sa.BigInteger(), nullable=False),
        sa.Column("canary", sa.BigInteger(), nullable=True),
        sa.Column("canary_percent", sa.BigInteger(), nullable=False),
        sa.Column("shadow", sa.BigInteger(), nullable=True),
        sa.Column("max_failure_percent", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["listing_id"], ["listing.id"]),
        sa.PrimaryKeyConstraint("listing_id"),
    )


def downgrade() -> None:
    op.drop_table("rollout")
