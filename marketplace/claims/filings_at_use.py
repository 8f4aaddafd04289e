"""The filings that a claimed line's usage was under, as they stand in the frozen document."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import Filing
from marketplace.usage.tables import Usage


def filings_of_line(session: Session, transfer_ids: list[int]) -> list[dict[str, Any]]:
    """Of the records that the voucher paid its share of: each filing by id with how many were under it, and SHA-256
    over `usage_id<LF>` in id order. Id "": usage from before filings were recorded, or of a model under none.
    """
    under: dict[str, list[str]] = defaultdict(list)
    for start in range(0, len(transfer_ids), 1_000):
        query = select(Usage.usage_id, Usage.filing_id).where(
            Usage.lease_kind == "subsidised", col(Usage.transfer_id).in_(transfer_ids[start : start + 1_000])
        )
        for usage_id, filing_id in session.exec(query):
            under[filing_id or ""].append(usage_id)
    return [_told(session, filing_id, usage) for filing_id, usage in sorted(under.items())]


def _told(session: Session, filing_id: str, usage: list[str]) -> dict[str, Any]:
    filing = session.get_one(Filing, filing_id) if filing_id else None
    return {
        "id": filing_id,
        "number": filing.number if filing else "",
        "holder": filing.holder if filing else "",
        "valid_from": filing.valid_from if filing else "",
        "valid_until": (filing.valid_until or "") if filing else "",
        "usage_count": len(usage),
        "usage_sha256": hashlib.sha256("".join(f"{each}\n" for each in sorted(usage)).encode()).hexdigest(),
    }
