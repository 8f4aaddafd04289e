"""Case files of applications: evidence, objections, overrides, other subsidies, what of an invoice backs which line."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _big(name: str, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def upgrade() -> None:
    with op.batch_alter_table("application") as table:
        table.add_column(sa.Column("notice_paused_days", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(_big("objected_at_ms", nullable=True))
        table.add_column(sa.Column("asked", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "evidence_file",
        *_text("id", "of", "subject_id", "organisation_id", "code", "name", "kind"),
        _big("size_bytes"),
        *_text("sha256", "uploaded_by"),
        _big("created_at_ms"),
        *_text("keep_until", "withdrawn_by"),
        _big("withdrawn_at_ms", nullable=True),
        *_text("deleted_by"),
        _big("deleted_at_ms", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    for name in ("subject_id", "organisation_id", "sha256"):
        op.create_index(f"ix_evidence_file_{name}", "evidence_file", [name], unique=False)
    op.create_table(
        "check_override",
        *_text("id", "application_id", "code", "failed_reason", "reason", "state", "proposed_by", "decided_by"),
        _big("created_at_ms"),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_check_override_application_id", "check_override", ["application_id"], unique=False)
    op.create_table(
        "objection",
        *_text("id", "application_id", "name", "contact", "reason", "state", "decision", "decided_by"),
        _big("decided_at_ms", nullable=True),
        _big("created_at_ms"),
        sa.ForeignKeyConstraint(["application_id"], ["application.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for name in ("application_id", "state"):
        op.create_index(f"ix_objection_{name}", "objection", [name], unique=False)
    op.create_table(
        "other_subsidy",
        *_text("id", "subscription_id", "organisation_id", "programme", "authority"),
        _big("amount_fen"),
        *_text("declared_by"),
        _big("created_at_ms"),
        *_text("withdrawn_by"),
        _big("withdrawn_at_ms", nullable=True),
        *_text("withdrawal"),
        sa.ForeignKeyConstraint(["subscription_id"], ["subscription.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for name in ("subscription_id", "organisation_id"):
        op.create_index(f"ix_other_subsidy_{name}", "other_subsidy", [name], unique=False)
    op.create_table(
        "invoice_backing",
        *_text("invoice_id", "line_id"),
        _big("amount_fen"),
        sa.CheckConstraint("amount_fen > 0", name="backing_is_positive"),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoice.id"]),
        sa.ForeignKeyConstraint(["line_id"], ["claim_line.id"]),
        sa.PrimaryKeyConstraint("invoice_id", "line_id"),
    )
    op.create_index("ix_invoice_backing_line_id", "invoice_backing", ["line_id"], unique=False)


def downgrade() -> None:
    for name in ("invoice_backing", "other_subsidy", "objection", "check_override", "evidence_file"):
        op.drop_table(name)
    with op.batch_alter_table("application") as table:
        for name in ("asked", "objected_at_ms", "notice_paused_days"):
            table.drop_column(name)
