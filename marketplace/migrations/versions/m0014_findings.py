"""Findings with their contracts, sightings and dispositions; the two histories are append-only."""

import sqlalchemy as sa
from alembic import op

from marketplace.ledger.guards import install

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_HISTORIES = ("finding_sighting", "finding_disposition")


def upgrade() -> None:
    op.create_table(
        "finding",
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("id", "code", "severity", "state", "programme_id", "organisation_id", "provider_id")
        ),
        sa.Column("amount_fen", sa.BigInteger(), nullable=False),
        sa.Column("text_zh", sa.String(), nullable=False),
        sa.Column("text_en", sa.String(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("first_seen_ms", "last_seen_ms", "changed_ms")),
        sa.PrimaryKeyConstraint("id"),
    )
    for name in ("code", "state", "organisation_id"):
        op.create_index(op.f(f"ix_finding_{name}"), "finding", [name], unique=False)
    op.create_table(
        "finding_contract",
        sa.Column("finding_id", sa.String(), nullable=False),
        sa.Column("subscription_id", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["finding_id"], ["finding.id"]),
        sa.PrimaryKeyConstraint("finding_id", "subscription_id"),
    )
    op.create_index(op.f("ix_finding_contract_subscription_id"), "finding_contract", ["subscription_id"], unique=False)
    _history("finding_sighting", *_texts("severity"), sa.Column("amount_fen", sa.BigInteger(), nullable=False),
             *_texts("text_zh", "text_en"), sa.Column("evidence", sa.JSON(), nullable=False))  # fmt: skip
    _history("finding_disposition", *_texts("state", "member_id", "reason"))
    install(op.get_bind())


def _texts(*names: str) -> list[sa.Column]:  # type: ignore[type-arg]
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _history(name: str, *columns: sa.Column) -> None:  # type: ignore[type-arg]
    op.create_table(
        name,
        sa.Column("id", _BIG_ID, autoincrement=True, nullable=False),
        sa.Column("finding_id", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        *columns,
        sa.ForeignKeyConstraint(["finding_id"], ["finding.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f(f"ix_{name}_finding_id"), name, ["finding_id"], unique=False)


def downgrade() -> None:
    for name in (*_HISTORIES, "finding_contract", "finding"):
        op.drop_table(name)
