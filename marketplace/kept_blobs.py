"""Which blobs the market's rows name: what no row names was left by a crash, and is swept at start.

Every column that holds the hash of a blob stands here; `tests/marketplace/test_kept_blobs.py` finds one that does not.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import ModelVersion
from marketplace.claims.tables import ClaimBatch, Invoice
from marketplace.evidence.tables import EvidenceFile

COLUMNS: tuple[Any, ...] = (ModelVersion.blob, ClaimBatch.sha256, Invoice.sha256, EvidenceFile.sha256)


def kept_blobs(session: Session) -> set[str]:
    """The SHA-256 of every blob that something rests on: bundles, frozen claims, invoices, evidence."""
    kept: set[str] = set()
    for column in COLUMNS:
        query = select(column).distinct()
        if column.class_ is EvidenceFile:
            query = query.where(col(EvidenceFile.deleted_at_ms).is_(None))
        kept |= {sha256 for sha256 in session.exec(query) if sha256}
    return kept
