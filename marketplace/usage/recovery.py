"""A node's start and end: old journals are sealed and ingested to their end before their leases are settled, and before
the node gets a new epoch. Never the other way round (../shared/design/vouchers.md, invariant 7)."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Engine

from marketplace.clock import now_ms
from marketplace.db import reading, retried, transaction
from marketplace.usage.ingest import Ingest
from marketplace.vouchers.nodes import Sealed, new_epoch, open_epochs, seal_epoch
from marketplace.vouchers.tables import NodeEpoch
from marketplace.vouchers.write_offs import note_recovered, note_turned_up, restore
from serving.journal import (
    EndEntry,
    Entry,
    JournalUnreadable,
    ProgressEntry,
    StartEntry,
    read_segment,
    seal_segment,
    segment_path,
)
from serving.journal_format import frame_of
from serving.metering import UsageRecord

SCAN_ENTRIES = 10_000


def register_node(engine: Engine, journal_folder: Path, node: str) -> int:
    """Recover what the node's older epochs left, then open and answer its new one. Call before any lease is asked for.

    The caller vouches that no other process runs under this node's name.
    """
    with reading(engine) as session:
        old = [row.epoch for row in open_epochs(session, node)]
    for epoch in old:
        close_epoch(engine, journal_folder, node, epoch)
    with transaction(engine) as session:
        return new_epoch(session, node, now_ms())


def close_epoch(engine: Engine, journal_folder: Path, node: str, epoch: int) -> None:
    """Seal a journal that nobody writes any more, ingest it to its end, settle its leases (P6). Safe to repeat."""
    path = segment_path(journal_folder, node, epoch)
    sealed, torn = None, False
    if path.exists():
        try:
            segment = seal_segment(path)
        except JournalUnreadable:
            torn = True  # it died while it wrote the header: nothing was ever recorded in it
        else:
            seal = segment.seal
            assert seal is not None
            size = segment.next_offset - len(frame_of(seal))
            sealed = Sealed(segment.header.first_seq, seal.last_seq, seal.count, size, seal.sha256)
            torn = segment.torn is not None or path.with_name(f"{path.name}.torn").exists()
            _ingest_rest(engine, journal_folder, node, epoch, seal.last_seq)

    def settle() -> None:
        with transaction(engine) as session:
            seal_epoch(session, node, epoch, sealed=sealed, torn=torn, at_ms=now_ms())
            note_recovered(session, node, epoch, now_ms())

    retried(settle)


def take_late(engine: Engine, journal_folder: Path, node: str, epoch: int) -> None:
    """The whole journal of an epoch that was written off is here after all: set aside again what can be, ingest what
    that covers, quarantine the rest, settle. Safe to repeat, from wherever it was interrupted."""
    with transaction(engine) as session:
        restore(session, node, epoch, now_ms())
    close_epoch(engine, journal_folder, node, epoch)
    with transaction(engine) as session:
        note_turned_up(session, node, epoch, now_ms())


def _ingest_rest(engine: Engine, journal_folder: Path, node: str, epoch: int, last_seq: int) -> None:
    ingest = Ingest(engine, journal_folder, node)
    with reading(engine) as session:
        done = session.get_one(NodeEpoch, (node, epoch)).last_seq
    if done < last_seq:  # a power cut may have taken what was ingested already: then there is nothing to read
        ingest.drain(node, epoch)
    left = unresolved(segment_path(journal_folder, node, epoch))
    if left:
        ingest.ingest_records(node, epoch, left, "unresolved")


class RunningStreams:
    """Streams that began and have not ended, in the order of a journal's entries."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, UsageRecord]] = {}

    def take(self, entry: Entry) -> None:
        if isinstance(entry, StartEntry):
            zero = dict.fromkeys(entry.usage.units, 0)  # its own figures are an estimate: nothing is counted yet
            record = msgspec.structs.replace(entry.usage, units=zero, amount_micro=0, status="unresolved")
            self._running[entry.usage.usage_id] = (entry.seq, record)
        elif isinstance(entry, ProgressEntry) and entry.usage_id in self._running:
            seq, record = self._running[entry.usage_id]
            units, amount = entry.units, entry.amount_micro
            self._running[entry.usage_id] = (seq, msgspec.structs.replace(record, units=units, amount_micro=amount))
        elif isinstance(entry, EndEntry):
            self._running.pop(entry.usage.usage_id, None)

    def unresolved(self) -> list[tuple[int, UsageRecord]]:
        """Each settled at its last counters and marked `unresolved`, with the sequence number of its start."""
        return list(self._running.values())


def unresolved(path: Path) -> list[tuple[int, UsageRecord]]:
    """The streams of a journal that began and never ended, as records to charge."""
    running = RunningStreams()
    offset, more = 0, True
    while more:
        segment = read_segment(path, offset, SCAN_ENTRIES)
        offset, more = segment.next_offset, segment.more
        for entry in segment.entries:
            running.take(entry)
    return running.unresolved()
