"""Every report, in the order in which they are listed."""

from __future__ import annotations

from marketplace.reports import (
    application_tables,
    cap_tables,
    claim_tables,
    finding_tables,
    integrity_tables,
    ledger_tables,
    reconcile_tables,
    usage_tables,
    voucher_tables,
)
from marketplace.reports.declared import Report

_ALL: tuple[Report, ...] = (
    voucher_tables.POOL,
    voucher_tables.REGISTER,
    application_tables.DOSSIER,
    cap_tables.CAPS,
    cap_tables.CONTRACTS,
    usage_tables.DETAIL,
    usage_tables.SUMMARY,
    usage_tables.FILINGS,
    claim_tables.CLAIMS,
    application_tables.NOTICES,
    finding_tables.FINDINGS,
    claim_tables.CORRECTIONS,
    ledger_tables.RETURNS,
    claim_tables.CLAWBACKS,
    ledger_tables.TRIAL_BALANCE,
    reconcile_tables.RECONCILE,
    integrity_tables.INTEGRITY,
    usage_tables.PERFORMANCE,
    usage_tables.COST,
)
REPORTS = {report.name: report for report in _ALL}
