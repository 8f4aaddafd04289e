"""Journals held against the ledger: is each record there, once, for the same amount, and nothing else? Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from sqlmodel import Session, col, func, select

from marketplace.integrity.segments import segments_of
from marketplace.usage.ingest import finished
from marketplace.usage.rating import LINE_FIELDS
from marketplace.usage.recovery import RunningStreams
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import LeaseRow, NodeEpoch
from serving.journal_format import sha256_of_prefix
from serving.journal_summary import Summary, portions, summarise
from serving.metering import PriceLine, UsageRecord, rate_usage

CHUNK = 2_000
SHOWN = 20
# what a usage row repeats of its record
SAME = ("key_id", "model", "adapter", "price_version", "lease_id", "amount_micro", "occurred_at_ms", "purpose",
        "request_digest", "response_digest")  # fmt: skip


class Replay(msgspec.Struct):
    """How one journal stands against the ledger. The lists hold at most `SHOWN` usage ids; the counts are whole."""

    summary: Summary
    posted: int = 0
    quarantined: int = 0
    repeated: int = 0  # under a usage id that stood in the journal before: a retry, billed once
    missing: int = 0  # in the journal, not in the ledger; of an open epoch ingest may not have come so far
    differing: int = 0
    foreign: int = 0  # in the ledger under this epoch, not in the journal
    misrated: int = 0  # the amount is not what the lease's price gives
    epoch_state: str = "unknown"
    seal_agrees: bool | None = None  # None: not sealed on one of the two sides
    prefixes: int = 0  # recorded hashes of its beginnings that agree
    prefixes_differ: int = 0
    examples: dict[str, list[str]] = {}

    @property
    def agrees(self) -> bool:
        wrong = self.differing + self.foreign + self.misrated + (self.missing if self.epoch_state == "sealed" else 0)
        wrong += self.prefixes_differ
        return not wrong and self.seal_agrees is not False and self.summary.state in ("sealed", "open")

    def note(self, what: str, usage_id: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        shown = self.examples.setdefault(what, [])
        if len(shown) < SHOWN:
            shown.append(usage_id)


def replay(session: Session, path: Path) -> Replay:
    """Hold one journal file against the ledger. Raises `JournalUnreadable`, OSError."""
    summary = summarise(path)
    found = Replay(summary, examples={})
    epoch = session.get(NodeEpoch, (summary.node, summary.epoch))
    if epoch is not None:
        found.epoch_state = epoch.state
        if summary.sha256 and epoch.sha256:
            found.seal_agrees = summary.sha256 == epoch.sha256
    for segment in segments_of(session, summary.node, summary.epoch):
        whole = path.stat().st_size >= segment.bytes
        if whole and sha256_of_prefix(path, segment.bytes) == segment.sha256:
            found.prefixes += 1
        else:
            found.prefixes_differ += 1
    seen: set[str] = set()
    prices: dict[str, dict[tuple[str, str], PriceLine]] = {}
    for records in _charged(path, sealed=summary.state == "sealed"):
        fresh = []
        for record in records:
            if record.usage_id in seen:
                found.repeated += 1
            else:
                seen.add(record.usage_id)
                fresh.append(record)
        _compare(session, found, fresh, prices)
    _find_foreign(session, found, seen)
    return found


def _charged(path: Path, *, sealed: bool) -> Iterator[list[UsageRecord]]:
    """What ingest charges, in its order: finished runs, and of a sealed journal the streams that never ended."""
    running = RunningStreams()
    for segment in portions(path):
        for entry in segment.entries:
            running.take(entry)
        records = [record for _, record in finished(segment.entries, 0)]
        yield from (records[at : at + CHUNK] for at in range(0, len(records), CHUNK))
    if sealed:
        yield [record for _, record in running.unresolved()]


def _compare(
    session: Session, found: Replay, records: list[UsageRecord], prices: dict[str, dict[tuple[str, str], PriceLine]]
) -> None:
    ids = [record.usage_id for record in records]
    rows = {row.usage_id: row for row in session.exec(select(Usage).where(col(Usage.usage_id).in_(ids)))}
    for record in records:
        row = rows.get(record.usage_id)
        if row is None:
            found.note("missing", record.usage_id)
            continue
        found.posted += 1
        if any(getattr(row, name) != getattr(record, name) for name in SAME):
            # a retry may be journalled in a later epoch too: then the row is that of the first
            elsewhere = (row.node, row.epoch) != (found.summary.node, found.summary.epoch)
            found.note("repeated" if elsewhere else "differing", record.usage_id)
        elif row.status == "quarantined":
            found.quarantined += 1
        elif not _rates_alike(session, record, prices):
            found.note("misrated", record.usage_id)
    session.expunge_all()


def _rates_alike(session: Session, record: UsageRecord, prices: dict[str, dict[tuple[str, str], PriceLine]]) -> bool:
    """Whether the shipped rating gives the amount again, at the price that the lease carried."""
    if record.lease_id not in prices:
        row = session.get(LeaseRow, record.lease_id)
        priced = row.prices if row is not None and row.kind != "free" else []
        lines = [PriceLine(**{name: line[name] for name in LINE_FIELDS}) for line in priced]
        prices[record.lease_id] = {(line.model, line.price_version): line for line in lines}
    line = prices[record.lease_id].get((record.model.rpartition("@")[0] or record.model, record.price_version))
    return record.amount_micro == (0 if line is None else rate_usage(record.units, line))


def _find_foreign(session: Session, found: Replay, seen: set[str]) -> None:
    """Rows that say they came from this journal and did not."""
    where = (Usage.node == found.summary.node, Usage.epoch == found.summary.epoch)
    if (session.exec(select(func.count()).where(*where)).one() or 0) <= found.posted and not found.repeated:
        return
    for usage_id in session.exec(select(Usage.usage_id).where(*where)).yield_per(CHUNK):
        if usage_id not in seen:
            found.note("foreign", usage_id)
