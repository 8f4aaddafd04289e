"""Which blobs the market's rows name: what no row names was left by a crash, and is swept at start.

Every column that holds the hash of a blob stands here; `tests/marketplace/test_kept_blobs.py` finds one that does not.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, select

from marketplace.catalogue.tables import ModelVersion
from marketplace.claims.tables import ClaimBatch, Invoice

COLUMNS: tuple[Any, ...] = (ModelVersion.blob, ClaimBatch.sha256, Invoice.sha256)


def kept_blobs(session: Session) -> set[str]:
    """The SHA-256 of every blob that something rests on: bundles, frozen claims, invoices."""
    return {sha256 for column in COLUMNS for sha256 in session.exec(select(column).distinct()) if sha256}
