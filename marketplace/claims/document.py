"""The frozen document of a batch: canonical JSON, whose SHA-256 is what was submitted, approved and paid."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from sqlmodel import Session

from marketplace.claims.assembly import Candidate, needs_invoices
from marketplace.claims.backing import backing_of_line
from marketplace.claims.charged import Charged, corrections_under
from marketplace.claims.filings_at_use import filings_of_line
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.evidence.files import live_files, told
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.subsidies import list_subsidies
from marketplace.vouchers.tables import Application, Programme
from model_store.blobs import Blobs

FORMAT = "algomart-claim/2"  # 1: lines without redeem-by day, whether invoices are asked for, corrections


def canonical(document: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8: one document has one hash."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sha256_of(document: Any) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()


def claim_document(
    session: Session, batch: ClaimBatch, programme: Programme, lines: list[tuple[ClaimLine, Candidate]], at_ms: int
) -> dict[str, Any]:
    """Everything that the batch claims, and what each line rests on, down to the transfers and their usage digest."""
    return {
        "format": FORMAT,
        "batch": batch.id,
        "programme": {
            "id": programme.id,
            "code": programme.code,
            "version": programme.version,
            "sha256": sha256_of(programme.document),
            "settlement_mode": programme.document.get("settlement_mode"),
            "payee": programme.document.get("payee"),
        },
        "from_day": batch.from_day,
        "to_day": batch.to_day,
        "frozen_at_ms": at_ms,
        "frozen_by": batch.frozen_by,
        "total_fen": sum(line.subsidy_fen for line, _ in lines),
        "lines": [_line(session, line, candidate, programme) for line, candidate in lines],
    }


def _line(session: Session, line: ClaimLine, candidate: Candidate, programme: Programme) -> dict[str, Any]:
    enterprise = session.get_one(Organisation, line.organisation_id)
    provider = session.get_one(Organisation, line.provider_id)
    application = session.get_one(Application, candidate.voucher.application_id)
    rules = rules_of(programme)
    return {
        "line": line.id,
        "enterprise": {"id": enterprise.id, "name_zh": enterprise.name_zh, "uscc": enterprise.uscc or ""},
        "provider": {"id": provider.id, "name_zh": provider.name_zh, "uscc": provider.uscc or ""},
        "application": application.id,
        "evidence": [told(file) for file in live_files(session, [application.id])],
        "invoices_required": needs_invoices(rules),
        "invoices": backing_of_line(session, line.id),
        "other_subsidies": _other_subsidies(session, line),
        "voucher": candidate.voucher.id,
        "use_by": candidate.voucher.use_by,
        "redeem_by": candidate.voucher.redeem_by,
        "contract": line.subscription_id,
        "reservation": line.reservation_id,
        "ratio": [candidate.reservation.ratio_num, candidate.reservation.ratio_den],
        "gross_fen": line.gross_fen,
        "subsidy_fen": line.subsidy_fen,
        "usage_count": line.usage_count,
        "usage_sha256": line.usage_sha256,
        "filing_required": rules.filing_required,
        "filings": filings_of_line(session, [charge.transfer_id for charge in candidate.charges]),
        "corrections": corrections_under(session, line.reservation_id),
        "transfers": [_transfer(charge) for charge in candidate.charges],
    }


def _transfer(charge: Charged) -> dict[str, Any]:
    told = {
        "id": charge.transfer_id,
        "kind": charge.kind,
        "event": charge.event_key,
        "occurred_at_ms": charge.occurred_at_ms,
        "gross_fen": charge.gross_fen,
        "subsidy_fen": charge.subsidy_fen,
    }
    return told | {"usage_id": charge.usage_id, "reverses": charge.reverses} if charge.usage_id else told


def _other_subsidies(session: Session, line: ClaimLine) -> list[dict[str, Any]]:
    """What stands declared on the contract when the batch is frozen, with the files that show it."""
    return [
        {
            "id": row.id,
            "programme": row.programme,
            "authority": row.authority,
            "amount_fen": row.amount_fen,
            "evidence": [told(file) for file in live_files(session, [row.id])],
        }
        for row in list_subsidies(session, None, line.subscription_id)
        if row.withdrawn_at_ms is None
    ]


def keep(blobs: Blobs, document: dict[str, Any]) -> str:
    """Keep the document under its hash; answers that. An orphan of a rolled-back transaction harms nobody."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claim.json"
        path.write_bytes(canonical(document))
        return blobs.put(path)
