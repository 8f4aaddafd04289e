"""Ingest: tails the journals of open epochs and brings their usage into the ledger, batch by batch.

Where a journal was read up to stands in its epoch's row and advances in the transaction that charges: a crash repeats a
batch whole or not at all. A journal that ends inside a frame is being written; any other damage stops that journal and
is told in `problems` until the epoch is sealed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from sqlalchemy import Engine
from sqlmodel import select

from marketplace.db import reading, retried, transaction
from marketplace.usage.batch import Outcome, ingest_batch
from marketplace.vouchers.nodes import open_epochs
from marketplace.vouchers.tables import NodeEpoch
from serving.journal import EndEntry, Entry, JournalUnreadable, Segment, UsageEntry, read_segment, segment_path
from serving.metering import UsageRecord

BATCH_RECORDS = 2_000
INTERVAL_S = 0.25  # long enough for a batch that is worth its transaction, short enough to be seen at once
BREATH_S = 0.02  # after a full batch: SQLite lets other writers in only between two transactions
RETRY_S = 1.0
_log = logging.getLogger("algomart.ingest")


class Progress(msgspec.Struct):
    """What was ingested since the start. `offsets`: journal → bytes of it that are in the ledger; `caught_up_at_ms`:
    when nothing was left to read, last. It crosses a pipe where ingest has a process of its own (`supervisor`)."""

    records: int = 0
    duplicates: int = 0
    quarantined: int = 0
    postings: int = 0
    batches: int = 0
    last_occurred_ms: int = 0
    caught_up_at_ms: int = 0
    offsets: dict[str, int] = {}
    problems: dict[str, str] = {}  # journal → what is wrong with it
    last_error: str = ""

    def behind_bytes(self, folder: Path) -> int:
        """Bytes of the journals in `folder` that are written and not in the ledger yet."""
        left = 0
        for name, offset in list(self.offsets.items()):  # the thread that ingests may add one meanwhile
            try:
                left += max(0, (folder / name).stat().st_size - offset)
            except OSError:  # sealed and taken away meanwhile
                continue
        return left

    def lag_ms(self, folder: Path, at_ms: int) -> int:
        """At most so old is the oldest usage that is not in the ledger yet; 0 where none waits."""
        if not self.behind_bytes(folder):
            return 0
        return max(0, at_ms - max(self.last_occurred_ms, self.caught_up_at_ms))


class Ingest:
    """One thread that tails `journal_folder`; `node` "" takes every node whose journal lies there."""

    def __init__(
        self,
        engine: Engine,
        journal_folder: Path,
        node: str = "",
        *,
        batch_records: int = BATCH_RECORDS,
        told: Callable[[Progress], None] | None = None,
    ) -> None:
        """`told` hears of the progress after every pass of the thread."""
        self._engine, self._folder, self._node = engine, journal_folder, node
        self._batch_records = batch_records
        self._told = told
        self._turn = threading.Lock()  # one pass at a time: the thread's, or that of whoever flushes
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.progress = Progress()
        self.problems = self.progress.problems

    def start(self) -> None:
        self._thread = threading.Thread(target=self._tail, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is written but not ingested is ingested by the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def flush(self) -> None:
        """Ingest all that is written by now, on the caller's thread; raises what ingesting raises."""
        while self.run_pass():
            pass

    def run_pass(self) -> int:
        """One batch of each open journal; answers how many entries were read."""
        with self._turn:
            with reading(self._engine) as session:
                epochs = [(row.node, row.epoch) for row in open_epochs(session, self._node or None)]
            read = sum(self._ingest_one(node, epoch) for node, epoch in epochs)
            known = {segment_path(self._folder, node, epoch).name for node, epoch in epochs}
            self.progress.offsets = {name: at for name, at in self.progress.offsets.items() if name in known}
            if not read and not self.problems:
                self.progress.caught_up_at_ms = time.time_ns() // 1_000_000
            return read

    def drain(self, node: str, epoch: int) -> None:
        """Ingest one journal to its end."""
        with self._turn:
            while self._ingest_one(node, epoch):
                pass

    def ingest_records(self, node: str, epoch: int, records: list[tuple[int, UsageRecord]], event: str) -> Outcome:
        """Charge records that stand in no usage entry of their own (streams without an end), once per usage id."""

        def charge() -> Outcome:
            with transaction(self._engine) as session:
                row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
                return ingest_batch(session, row, records, f"{node}:{epoch}:{event}")

        return retried(charge)

    def _tail(self) -> None:
        while not self._stop.is_set():
            wait = INTERVAL_S
            try:
                if self.run_pass() >= self._batch_records:
                    wait = BREATH_S
                self.progress.last_error = ""
            except Exception as error:  # the journal keeps what could not be posted; try again until it can be
                self.progress.last_error = f"{type(error).__name__}: {error}"
                _log.exception("ingest failed; trying again")
                wait = RETRY_S
            if self._told is not None:
                self._told(self.progress)
            self._stop.wait(wait)

    def _ingest_one(self, node: str, epoch: int) -> int:
        path = segment_path(self._folder, node, epoch)
        with reading(self._engine) as session:
            query = select(NodeEpoch).where(NodeEpoch.node == node, NodeEpoch.epoch == epoch)
            offset = session.exec(query).one().offset_bytes
        if not path.exists() or path.stat().st_size <= offset:
            self.progress.offsets[path.name] = offset
            return 0
        try:
            segment = read_segment(path, offset, self._batch_records)
        except JournalUnreadable as error:
            self.problems[path.name] = str(error)
            return 0
        self._note_damage(path, segment)
        self.progress.offsets[path.name] = segment.next_offset if not segment.entries else offset
        if segment.entries:
            self._take(node, epoch, offset, segment)
        return len(segment.entries)

    def _charge(
        self, node: str, epoch: int, offset: int, segment: Segment
    ) -> tuple[list[tuple[int, UsageRecord]], Outcome] | None:
        """One transaction: the records are charged and the offset advances, or neither."""
        with transaction(self._engine) as session:
            row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
            if row.state not in ("open", "late") or row.offset_bytes != offset:
                return None  # another process has ingested it meanwhile, or two persons wrote it off
            records = finished(segment.entries, row.last_seq)
            row.last_seq, row.offset_bytes = segment.entries[-1].seq, segment.next_offset
            session.add(row)
            return records, ingest_batch(session, row, records, f"{node}:{epoch}:{row.last_seq}")

    def _take(self, node: str, epoch: int, offset: int, segment: Segment) -> None:
        taken = retried(lambda: self._charge(node, epoch, offset, segment))
        if taken is None:
            return
        records, outcome = taken
        progress = self.progress
        progress.offsets[segment_path(self._folder, node, epoch).name] = segment.next_offset
        progress.batches += 1
        progress.records += outcome.inserted
        progress.duplicates += outcome.duplicates
        progress.quarantined += outcome.quarantined
        progress.postings += outcome.postings
        if records:
            # a node's clock may go before ours
            progress.last_occurred_ms = min(records[-1][1].occurred_at_ms, time.time_ns() // 1_000_000)

    def _note_damage(self, path: Path, segment: Segment) -> None:
        """Damage of a live journal; a frame that is still being written is none."""
        if segment.torn is not None and segment.torn.reason not in ("frame", "tail"):
            self.problems[path.name] = f"{segment.torn.reason} at byte {segment.torn.offset}"
        else:
            self.problems.pop(path.name, None)


def finished(entries: list[Entry], after_seq: int) -> list[tuple[int, UsageRecord]]:
    """The records of finished runs past a sequence number: usage, and ends of streams."""
    return [(e.seq, e.usage) for e in entries if isinstance(e, UsageEntry | EndEntry) and e.seq > after_seq]
