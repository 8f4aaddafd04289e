"""Writing the journal (its format: `journal_format`): `write()` before the answer, `fdatasync` in groups behind it.

A record survives kill -9 as soon as `append` has returned. A power cut may lose what the last group had not synced
(at most 5 ms or 128 records): public money is then under-claimed, never over-claimed. `synced` waits for the group.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from model_store.errors import Unavailable
from serving.journal_format import (
    MAGIC,
    VERSION,
    EndEntry,
    Entry,
    JournalHeader,
    JournalUnreadable,
    ProgressEntry,
    SealEntry,
    Segment,
    StartEntry,
    Torn,
    UsageEntry,
    frame_of,
    read_segment,
    seal_segment,
    segment_path,
    sha256_of_prefix,
    verify,
)
from serving.metering import UsageRecord

__all__ = [
    "EndEntry",
    "Entry",
    "JournalHeader",
    "JournalUnreadable",
    "JournalWriter",
    "ProgressEntry",
    "SealEntry",
    "Segment",
    "StartEntry",
    "Torn",
    "UsageEntry",
    "journal_unavailable",
    "read_segment",
    "seal_segment",
    "segment_path",
    "verify",
]
GROUP_S = 0.005
GROUP_RECORDS = 128
MIN_FREE_BYTES = 16 << 20
SPACE_CHECK_S = 1.0
_log = logging.getLogger("algomart.journal")


class JournalWriter:
    """The one writer of a node's epoch. Appending is safe from any thread."""

    def __init__(self, folder: Path, node: str, epoch: int, first_seq: int = 1) -> None:
        """Creates `<folder>/<node>-<epoch>.alj`; an existing file is never reused. Raises FileExistsError, OSError."""
        self.folder, self.node = folder, node
        self._lock = threading.Lock()
        self._syncing = threading.Lock()  # held while the kernel works on the file: it must not be closed meanwhile
        self._wake = threading.Event()
        self._parked = False  # the syncing thread has nothing to do and waits for `_wake`
        self._waiting: deque[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._closed = False
        self._broken = ""
        self._space_checked = 0.0
        self._space_ok = True
        self._open(epoch, first_seq)
        self._thread = threading.Thread(target=self._sync_loop, name="journal-sync", daemon=True)
        self._thread.start()

    def _open(self, epoch: int, first_seq: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.epoch, self.first_seq, self.next_seq = epoch, first_seq, first_seq
        self.path = segment_path(self.folder, self.node, epoch)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        header = frame_of(JournalHeader(MAGIC, VERSION, self.node, epoch, first_seq))
        os.write(self._file, header)
        os.fsync(self._file)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the name itself must survive a power cut
        finally:
            os.close(folder)
        self._size = self._synced_size = len(header)
        self._unsynced = 0
        self.sealed: SealEntry | None = None

    # --- the hot path -------------------------------------------------------------------------------------------------

    def usage(self, record: UsageRecord, idempotency: str = "") -> int:
        """Append one finished run; returns its sequence number. Raises `Unavailable` JOURNAL_UNAVAILABLE."""
        with self._lock:
            return self._write(UsageEntry(self.next_seq, record, idempotency))

    def append(self, entry: Entry) -> int:
        """Append an entry of any kind; its `seq` must be `next_seq`. Raises `Unavailable` JOURNAL_UNAVAILABLE."""
        with self._lock:
            if entry.seq != self.next_seq:
                raise ValueError(f"sequence {entry.seq}, expected {self.next_seq}")
            return self._write(entry)

    def usages(self, records: Sequence[UsageRecord]) -> None:
        """Append several finished runs with one `write()`, all or none. Raises `Unavailable` JOURNAL_UNAVAILABLE."""
        with self._lock:
            self._check_open()
            entries = [UsageEntry(seq, record) for seq, record in enumerate(records, self.next_seq)]
            self._write_out(b"".join(map(frame_of, entries)), len(records))

    def _write(self, entry: Entry) -> int:
        self._check_open()
        self._write_out(frame_of(entry), 1)
        return entry.seq

    def _check_open(self) -> None:
        if self._broken or self.sealed is not None:
            raise journal_unavailable(self._broken or "sealed")

    def _write_out(self, data: bytes, count: int) -> None:
        """Write the frames of `count` records, whole or not at all."""
        failure = ""
        try:
            if os.write(self._file, data) != len(data):
                failure = "no space left"  # the disk filled up half-way
        except OSError as error:
            failure = str(error)
        if failure:
            self._take_back(failure)
            raise journal_unavailable(failure)
        self.next_seq += count
        self._size += len(data)
        self._unsynced += count
        if self._parked:
            self._unpark()

    def _take_back(self, why: str) -> None:
        """Cut what a failed write left; where even that fails, nothing more may be appended to this file."""
        self._space_ok, self._space_checked = False, time.monotonic()
        try:
            os.ftruncate(self._file, self._size)
        except OSError as error:
            self._broken = f"{why}; {error}"
        _log.error("journal %s: %s", self.path.name, why)

    def check_ready(self) -> None:
        """Raise `Unavailable` JOURNAL_UNAVAILABLE before a run whose record could not be written."""
        now = time.monotonic()
        if now - self._space_checked > SPACE_CHECK_S:
            self._space_checked = now
            try:
                space = os.fstatvfs(self._file)
                self._space_ok = space.f_bavail * space.f_frsize >= MIN_FREE_BYTES
            except OSError as error:
                self._broken = str(error)
        if self._broken or not self._space_ok or self.sealed is not None:
            raise journal_unavailable(self._broken or ("sealed" if self.sealed else "disk nearly full"))

    # --- syncing ------------------------------------------------------------------------------------------------------

    async def synced(self) -> None:
        """Wait until everything appended so far is on the disk. Raises `Unavailable` JOURNAL_UNAVAILABLE."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._broken:
                raise journal_unavailable(self._broken)
            if self._synced_size >= self._size:
                return
            self._waiting.append((self._size, loop, future))
            self._unpark()
        await future

    def _unpark(self) -> None:
        self._parked = False
        self._wake.set()

    def _sync_loop(self) -> None:
        """Sleeps and syncs while there are records, else waits to be woken.

        Each wake-up of this thread costs the event loop some of the interpreter lock, so there are two a group: no
        condition variable, and a shorter sleep where the last group was too large.
        """
        pause = GROUP_S
        while True:
            with self._lock:
                if self._closed:
                    return
                if not self._unsynced and not self._waiting:
                    self._wake.clear()
                    self._parked = True
                parked = self._parked
            if parked:
                self._wake.wait()
                continue
            time.sleep(pause)
            count = self.sync()
            pause = GROUP_S if count <= GROUP_RECORDS else GROUP_S * GROUP_RECORDS / count

    def sync(self) -> int:
        """`fdatasync` now, and say how many records that was; a failure breaks the journal for good (what the kernel
        dropped cannot be written again)."""
        failure = ""
        with self._syncing:
            with self._lock:
                size, count, self._unsynced = self._size, self._unsynced, 0
            try:
                os.fdatasync(self._file)
            except OSError as error:
                failure = str(error)
                _log.error("journal %s cannot be synced: %s", self.path.name, error)
        with self._lock:
            if failure:
                self._broken = failure
            else:
                self._synced_size = max(self._synced_size, size)
            while self._waiting and (failure or self._waiting[0][0] <= size):
                _, loop, future = self._waiting.popleft()
                loop.call_soon_threadsafe(_finish, future, failure)
        return count

    # --- the end ------------------------------------------------------------------------------------------------------

    def seal(self) -> SealEntry:
        """End the file: a seal over all of it, synced. Nothing can be appended afterwards. Idempotent."""
        with self._lock:
            if self.sealed is not None:
                return self.sealed
            count = self.next_seq - self.first_seq
            seal = SealEntry(self.next_seq - 1, count, sha256_of_prefix(self.path, self._size))
            data = frame_of(seal)
            try:
                if os.write(self._file, data) != len(data):
                    raise OSError("no space left")
                os.fsync(self._file)
            except OSError as error:
                self._take_back(str(error))
                raise journal_unavailable(str(error)) from error
            self._size = self._synced_size = self._size + len(data)
            self._unsynced = 0
            self.sealed = seal
            while self._waiting:
                _, loop, future = self._waiting.popleft()
                loop.call_soon_threadsafe(_finish, future, "")
            return seal

    def rotate(self, epoch: int) -> Path:
        """Seal this file and go on in that of a newer `epoch`, sequence numbers continuing; answers the old path."""
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} is not newer than {self.epoch}")
        old = self.path
        self.seal()
        with self._syncing, self._lock:
            os.close(self._file)
            self._open(epoch, self.next_seq)
        return old

    def close(self, seal: bool = True) -> None:
        """Stop the thread and close the file, sealed unless told otherwise."""
        with self._lock:
            if self._closed:
                return
        if seal and not self._broken:
            self.seal()
        else:
            self.sync()
        with self._lock:
            self._closed = True
            self._unpark()
        self._thread.join()
        os.close(self._file)

    @property
    def synced_bytes(self) -> int:
        """What a power cut cannot take: whole records, from the beginning of the file."""
        return self._synced_size

    @property
    def size_bytes(self) -> int:
        return self._size


def _finish(future: asyncio.Future[None], failure: str) -> None:
    if future.done():
        return
    if failure:
        future.set_exception(journal_unavailable(failure))
    else:
        future.set_result(None)


def journal_unavailable(why: str) -> Unavailable:
    """The refusal where a run could not be recorded: it is not answered, and not charged."""
    return Unavailable(
        "JOURNAL_UNAVAILABLE",
        zh="用量日志暂时无法写入, 本次调用没有结果, 也未计费",
        en="the usage journal cannot be written just now; the call was not answered and not charged",
        remedy_zh="请稍后重试; 若持续出现, 请联系平台运营方检查磁盘空间",
        remedy_en="try again shortly; if it lasts, ask the operator to look at the disk space",
        retry_after_s=5,
        details={"reason": why[:200]},
    )
