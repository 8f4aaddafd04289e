"""Claims: batches, lines, what they claim, invoices, corrections, clawbacks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "correction",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("usage_id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("proposed_by", sa.String(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("gross_fen", sa.BigInteger(), nullable=False),
        sa.Column("subsidy_fen", sa.BigInteger(), nullable=False),
        sa.Column("transfer_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("usage_id"),
    )
    op.create_index(op.f("ix_correction_organisation_id"), "correction", ["organisation_id"], unique=False)
    op.create_index(op.f("ix_correction_state"), "correction", ["state"], unique=False)
    op.create_table(
        "claim_batch",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("programme_id", sa.String(), nullable=False),
        sa.Column("from_day", sa.String(), nullable=False),
        sa.Column("to_day", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("total_fen", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("frozen_by", sa.String(), nullable=False),
        sa.Column("frozen_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("notice_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("approved_by", sa.String(), nullable=False),
        sa.Column("payment_by", sa.String(), nullable=False),
        sa.Column("payment", sa.JSON(), nullable=False),
        sa.Column("paid_by", sa.String(), nullable=False),
        sa.Column("paid_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("total_fen >= 0", name="batch_never_negative"),
        sa.ForeignKeyConstraint(
            ["programme_id"],
            ["programme.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_claim_batch_programme_id"), "claim_batch", ["programme_id"], unique=False)
    op.create_index(op.f("ix_claim_batch_state"), "claim_batch", ["state"], unique=False)
    op.create_table(
        "invoice",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("number", sa.String(), nullable=False),
        sa.Column("subscription_id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("provider_id", sa.String(), nullable=False),
        sa.Column("amount_fen", sa.BigInteger(), nullable=False),
        sa.Column("issued_on", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("entered_by", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription_id"],
            ["subscription.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number", "subscription_id", name="invoice_once_a_contract"),
    )
    op.create_index(op.f("ix_invoice_number"), "invoice", ["number"], unique=False)
    op.create_index(op.f("ix_invoice_organisation_id"), "invoice", ["organisation_id"], unique=False)
    op.create_index(op.f("ix_invoice_subscription_id"), "invoice", ["subscription_id"], unique=False)
    op.create_table(
        "claim_line",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("reservation_id", sa.String(), nullable=False),
        sa.Column("voucher_id", sa.String(), nullable=False),
        sa.Column("subscription_id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("provider_id", sa.String(), nullable=False),
        sa.Column("gross_fen", sa.BigInteger(), nullable=False),
        sa.Column("subsidy_fen", sa.BigInteger(), nullable=False),
        sa.Column("clawed_fen", sa.BigInteger(), nullable=False),
        sa.Column("usage_count", sa.BigInteger(), nullable=False),
        sa.Column("usage_sha256", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.CheckConstraint("subsidy_fen > 0 AND clawed_fen >= 0", name="line_is_positive"),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["claim_batch.id"],
        ),
        sa.ForeignKeyConstraint(
            ["reservation_id"],
            ["reservation.id"],
        ),
        sa.ForeignKeyConstraint(
            ["voucher_id"],
            ["voucher.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_claim_line_batch_id"), "claim_line", ["batch_id"], unique=False)
    op.create_index(op.f("ix_claim_line_organisation_id"), "claim_line", ["organisation_id"], unique=False)
    op.create_index(op.f("ix_claim_line_reservation_id"), "claim_line", ["reservation_id"], unique=False)
    op.create_index(op.f("ix_claim_line_state"), "claim_line", ["state"], unique=False)
    op.create_index(op.f("ix_claim_line_voucher_id"), "claim_line", ["voucher_id"], unique=False)
    op.create_table(
        "claimed_transfer",
        sa.Column("transfer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("line_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["claim_line.id"],
        ),
        sa.PrimaryKeyConstraint("transfer_id"),
    )
    op.create_index(op.f("ix_claimed_transfer_line_id"), "claimed_transfer", ["line_id"], unique=False)
    op.create_table(
        "clawback",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("line_id", sa.String(), nullable=False),
        sa.Column("organisation_id", sa.String(), nullable=False),
        sa.Column("amount_fen", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("opened_by", sa.String(), nullable=False),
        sa.Column("confirmed_by", sa.String(), nullable=False),
        sa.Column("ended_by", sa.String(), nullable=False),
        sa.Column("write_off_by", sa.String(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["claim_line.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_clawback_line_id"), "clawback", ["line_id"], unique=False)
    op.create_index(op.f("ix_clawback_organisation_id"), "clawback", ["organisation_id"], unique=False)
    op.create_index(op.f("ix_clawback_state"), "clawback", ["state"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_clawback_state"), table_name="clawback")
    op.drop_index(op.f("ix_clawback_organisation_id"), table_name="clawback")
    op.drop_index(op.f("ix_clawback_line_id"), table_name="clawback")
    op.drop_table("clawback")
    op.drop_index(op.f("ix_claimed_transfer_line_id"), table_name="claimed_transfer")
    op.drop_table("claimed_transfer")
    op.drop_index(op.f("ix_claim_line_voucher_id"), table_name="claim_line")
    op.drop_index(op.f("ix_claim_line_state"), table_name="claim_line")
    op.drop_index(op.f("ix_claim_line_reservation_id"), table_name="claim_line")
    op.drop_index(op.f("ix_claim_line_organisation_id"), table_name="claim_line")
    op.drop_index(op.f("ix_claim_line_batch_id"), table_name="claim_line")
    op.drop_table("claim_line")
    op.drop_index(op.f("ix_invoice_subscription_id"), table_name="invoice")
    op.drop_index(op.f("ix_invoice_organisation_id"), table_name="invoice")
    op.drop_index(op.f("ix_invoice_number"), table_name="invoice")
    op.drop_table("invoice")
    op.drop_index(op.f("ix_claim_batch_state"), table_name="claim_batch")
    op.drop_index(op.f("ix_claim_batch_programme_id"), table_name="claim_batch")
    op.drop_table("claim_batch")
    op.drop_index(op.f("ix_correction_state"), table_name="correction")
    op.drop_index(op.f("ix_correction_organisation_id"), table_name="correction")
    op.drop_table("correction")
