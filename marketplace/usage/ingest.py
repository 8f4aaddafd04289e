"""Ingest: tails the journals of open epochs and brings their usage into the ledger, batch by batch.

Where a journal was read up to stands in its epoch's row and advances in the transaction that charges: a crash repeats a
batch whole or not at all. A journal that ends inside a frame is being written; any other damage stops that journal and
is told in `problems` until the epoch is sealed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import select

from marketplace.db import reading, transaction
from marketplace.usage.batch import Outcome, ingest_batch
from marketplace.vouchers.nodes import open_epochs
from marketplace.vouchers.tables import NodeEpoch
from serving.journal import EndEntry, Entry, JournalUnreadable, Segment, UsageEntry, read_segment, segment_path
from serving.metering import UsageRecord

BATCH_RECORDS = 2_000
INTERVAL_S = 0.2
RETRY_S = 1.0
_log = logging.getLogger("algomart.ingest")


@dataclass(slots=True)
class Progress:
    """What this process ingested since it started. `lag_ms`: age of the newest usage when it was posted."""

    records: int = 0
    duplicates: int = 0
    quarantined: int = 0
    postings: int = 0
    batches: int = 0
    lag_ms: int = 0
    last_error: str = ""


class Ingest:
    """One thread that tails `journal_folder`; `node` "" takes every node whose journal lies there."""

    def __init__(
        self, engine: Engine, journal_folder: Path, node: str = "", *, batch_records: int = BATCH_RECORDS
    ) -> None:
        self._engine, self._folder, self._node = engine, journal_folder, node
        self._batch_records = batch_records
        self._turn = threading.Lock()  # one pass at a time: the thread's, or that of whoever flushes
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.progress = Progress()
        self.problems: dict[str, str] = {}  # journal → what is wrong with it

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
            return sum(self._ingest_one(node, epoch) for node, epoch in epochs)

    def drain(self, node: str, epoch: int) -> None:
        """Ingest one journal to its end."""
        with self._turn:
            while self._ingest_one(node, epoch):
                pass

    def ingest_records(self, node: str, epoch: int, records: list[tuple[int, UsageRecord]], event: str) -> Outcome:
        """Charge records that stand in no usage entry of their own (streams without an end), once per usage id."""
        with transaction(self._engine) as session:
            row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
            return ingest_batch(session, row, records, f"{node}:{epoch}:{event}")

    def _tail(self) -> None:
        while not self._stop.is_set():
            wait = INTERVAL_S
            try:
                if self.run_pass() >= self._batch_records:
                    wait = 0.0
                self.progress.last_error = ""
            except Exception as error:  # the journal keeps what could not be posted; try again until it can be
                self.progress.last_error = f"{type(error).__name__}: {error}"
                _log.exception("ingest failed; trying again")
                wait = RETRY_S
            self._stop.wait(wait)

    def _ingest_one(self, node: str, epoch: int) -> int:
        path = segment_path(self._folder, node, epoch)
        with reading(self._engine) as session:
            query = select(NodeEpoch).where(NodeEpoch.node == node, NodeEpoch.epoch == epoch)
            offset = session.exec(query).one().offset_bytes
        if not path.exists() or path.stat().st_size <= offset:
            return 0
        try:
            segment = read_segment(path, offset, self._batch_records)
        except JournalUnreadable as error:
            self.problems[path.name] = str(error)
            return 0
        self._note_damage(path, segment)
        if segment.entries:
            self._take(node, epoch, offset, segment)
        return len(segment.entries)

    def _take(self, node: str, epoch: int, offset: int, segment: Segment) -> None:
        with transaction(self._engine) as session:
            row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
            if row.state != "open" or row.offset_bytes != offset:
                return  # another process has ingested it meanwhile
            records = finished(segment.entries, row.last_seq)
            row.last_seq, row.offset_bytes = segment.entries[-1].seq, segment.next_offset
            session.add(row)
            outcome = ingest_batch(session, row, records, f"{node}:{epoch}:{row.last_seq}")
        progress = self.progress
        progress.batches += 1
        progress.records += outcome.inserted
        progress.duplicates += outcome.duplicates
        progress.quarantined += outcome.quarantined
        progress.postings += outcome.postings
        if records:
            progress.lag_ms = time.time_ns() // 1_000_000 - records[-1][1].occurred_at_ms

    def _note_damage(self, path: Path, segment: Segment) -> None:
        """Damage of a live journal; a frame that is still being written is none."""
        if segment.torn is not None and segment.torn.reason not in ("frame", "tail"):
            self.problems[path.name] = f"{segment.torn.reason} at byte {segment.torn.offset}"
        else:
            self.problems.pop(path.name, None)


def finished(entries: list[Entry], after_seq: int) -> list[tuple[int, UsageRecord]]:
    """The records of finished runs past a sequence number: usage, and ends of streams."""
    return [(e.seq, e.usage) for e in entries if isinstance(e, UsageEntry | EndEntry) and e.seq > after_seq]
