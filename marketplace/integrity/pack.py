"""The pack of a claim batch: all that an auditor needs to judge each fen of it without this market (`verify`)."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections import defaultdict
from typing import Any

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import PriceVersion
from marketplace.claims.batches import lines_of
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer
from marketplace.clock import now_ms
from marketplace.integrity.chain import canonical, segment_leaf
from marketplace.integrity.days import Prover, day_facts, facts_of, leaf_of, list_days
from marketplace.integrity.segments import segments_of
from marketplace.integrity.tables import JournalSegment
from marketplace.integrity.verify import COLUMNS, FORMAT
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.usage.tables import Usage
from model_store.blobs import Blobs

_EPOCH = (1980, 1, 1, 0, 0, 0)  # in the archive: the same pack has the same bytes


def write_pack(session: Session, batch: ClaimBatch, blobs: Blobs) -> bytes:
    """A zip of the frozen document, its transfers, their usage, the journal segments that this was written down in,
    the proofs of both, the chain of days, and a manifest.

    A line that came back since is not in it: its transfers may stand in another batch by now.
    """
    claim = blobs.path(batch.sha256).read_bytes()
    transfers = _claimed(session, batch)
    usage, prover = _usage(session, transfers), Prover(session)
    proofs = {str(key): prover.transfer(session.get_one(LedgerTransfer, key)) for key in transfers}
    files = {
        "claim.json": claim,
        "transfers.jsonl": b"".join(leaf + b"\n" for leaf in _leaves(session, transfers)),
        "usage.csv": _csv(usage),
        "proofs.json": canonical(proofs),
        "segments.json": canonical(_segments(session, prover, [row for row, _ in usage])),
        "days.json": canonical([day_facts(row) for row in list_days(session)]),
    }
    manifest = {
        "format": FORMAT,
        "batch": batch.id,
        "claim_sha256": batch.sha256,
        "state": batch.state,
        "total_fen": batch.total_fen,
        "lines": [line.id for line in lines_of(session, batch) if line.state in ("in_batch", "accepted")],
        "made_at_ms": now_ms(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("manifest.json", canonical(manifest)), *sorted(files.items())):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _claimed(session: Session, batch: ClaimBatch) -> list[int]:
    lines = [line.id for line in lines_of(session, batch) if line.state in ("in_batch", "accepted")]
    query = select(ClaimedTransfer.transfer_id).where(col(ClaimedTransfer.line_id).in_(lines))
    return sorted(session.exec(query))


def _leaves(session: Session, transfers: list[int]) -> list[bytes]:
    found = []
    for transfer_id in transfers:
        row = session.get_one(LedgerTransfer, transfer_id)
        query = select(LedgerEntry).where(LedgerEntry.transfer_id == transfer_id).order_by(col(LedgerEntry.line))
        found.append(leaf_of(row, [(entry.account, entry.amount_fen) for entry in session.exec(query)]))
    return found


def _usage(session: Session, transfers: list[int]) -> list[tuple[Usage, PriceVersion | None]]:
    """The usage that these transfers carry, with the price it was rated by, in id order."""
    rows: list[tuple[Usage, PriceVersion | None]] = []
    for start in range(0, len(transfers), 1_000):
        query = select(Usage, PriceVersion).join(
            PriceVersion, col(PriceVersion.id) == col(Usage.price_version), isouter=True
        )
        rows += session.exec(query.where(col(Usage.transfer_id).in_(transfers[start : start + 1_000]))).all()
    return sorted(rows, key=lambda row: row[0].usage_id)


def _csv(rows: list[tuple[Usage, PriceVersion | None]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for usage, price in rows:
        unit, micro = (price.unit, price.micro_per_unit) if price else ("calls", 0)
        writer.writerow(
            (usage.usage_id, usage.transfer_id, usage.reservation_id, usage.occurred_at_ms, usage.organisation_id,
             usage.model, usage.price_version, unit, usage.units.get(unit, 0), micro, usage.amount_micro,
             usage.lease_kind, usage.node, usage.epoch, usage.seq, usage.request_digest, usage.response_digest)
        )  # fmt: skip
    return buffer.getvalue().encode()


def _segments(session: Session, prover: Prover, usage: list[Usage]) -> list[dict[str, Any]]:
    """The shortest recorded segment that has each record, a proved one where there is one: leaf and proof."""
    seqs: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in usage:
        seqs[row.node, row.epoch].append(row.seq)
    found: list[dict[str, Any]] = []
    for (node, epoch), wanted in sorted(seqs.items()):
        known = [(each, prover.segment(each)) for each in segments_of(session, node, epoch)]
        # stable: among the proved ones, and among the others, the shortest stays first
        known.sort(key=lambda each: each[1] is None)
        taken: dict[int, tuple[JournalSegment, dict[str, Any] | None]] = {}
        for seq in wanted:
            at = next((at for at, (each, _) in enumerate(known) if each.first_seq <= seq <= each.last_seq), None)
            if at is not None:
                taken[at] = known[at]
        for _, (segment, proof) in sorted(taken.items()):
            found.append({"leaf": segment_leaf(facts_of(segment)).decode(), "proof": proof})
    return found
