"""A node's journals brought to the market: what its own disk has synced, in order, again from wherever it broke off.

An epoch is closed at the market only once its journal is sealed and there to the last byte, and only then does the node
get a new one: usage first, leases after (../shared/design/vouchers.md, invariant 7).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import orjson

from model_store.errors import Conflict, Refusal
from serving.journal import JournalUnreadable, JournalWriter, seal_segment, segment_path
from serving.leases import now_ms
from serving.remote.link import MarketLink
from serving.remote.wire import PREFIX

_log = logging.getLogger("algomart.remote")
PORTION_BYTES = 1 << 20
PAUSE_S = 0.25
AGAIN_S = 1.0
TRIES_AT_THE_END = 3
OPENING = ".opening"  # an epoch was asked for, and its journal may not have begun
KEPT_JOURNALS = 10  # sealed ones that the market has, for the last day's idempotency keys


class Shipper:
    """Sends the journal of a running epoch while `run` does; `finish` sends the sealed rest and closes the epoch."""

    def __init__(self, link: MarketLink, journal: JournalWriter) -> None:
        self._link, self._journal = link, journal
        self._epoch, self._path = journal.epoch, journal.path
        self.shipped_bytes = 0

    async def run(self) -> None:
        """Until cancelled. A market that is away is tried again each second; calls go on inside their leases."""
        while True:
            try:
                sent = await self._ship(self._journal.synced_bytes)
                await asyncio.sleep(0 if sent == PORTION_BYTES else PAUSE_S)
            except Refusal as refusal:
                if isinstance(refusal, Conflict) and "size" in refusal.details:
                    self.shipped_bytes = int(refusal.details["size"])
                    continue
                _log.warning("the journal waits: %s", refusal)
                await asyncio.sleep(AGAIN_S)
            except OSError as error:
                _log.error("the journal cannot be read: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def finish(self) -> None:
        """After the journal was closed. What cannot be sent now is sent at the next start."""
        for _ in range(TRIES_AT_THE_END):
            try:
                size = self._path.stat().st_size
                while self.shipped_bytes < size:
                    await self._ship(size)
                await self._link.call("POST", f"{PREFIX}/epochs/{self._epoch}/close", params={"size": size})
                return
            except Refusal as refusal:
                if isinstance(refusal, Conflict) and "size" in refusal.details:
                    self.shipped_bytes = int(refusal.details["size"])
                    continue
                _log.warning("the rest of the journal is sent at the next start: %s", refusal)
                return

    async def _ship(self, end: int) -> int:
        """One portion of what is before `end`; answers its bytes."""
        content = await asyncio.to_thread(_read, self._path, self.shipped_bytes, end)
        if content:
            await self._link.call("PUT", _put(self._epoch, self.shipped_bytes, content), content=content)
            self.shipped_bytes += len(content)
        return len(content)


def open_epoch(link: MarketLink, folder: Path) -> tuple[str, int]:
    """The node's name and a new epoch for it, after everything that older ones left is at the market. Blocking.

    Raises `Conflict` EPOCH_OPEN where the market waits for a journal that is not in `folder` (another process runs
    under this token, or the disk was lost), and what `MarketLink.call_now` raises.
    """
    told = orjson.loads(link.call_now("GET", f"{PREFIX}/epochs"))
    node = str(told["node"])
    for each in told["items"]:
        path = segment_path(folder, node, int(each["epoch"]))
        if path.exists() or (folder / OPENING).exists():
            _close(link, path, int(each["epoch"]), int(each["bytes"]))
    (folder / OPENING).touch()
    epoch = int(orjson.loads(link.call_now("POST", f"{PREFIX}/epochs"))["epoch"])
    for path in sorted(folder.glob("*.alj"), key=lambda found: found.stat().st_mtime)[:-KEPT_JOURNALS]:
        path.unlink()
    return node, epoch


def epoch_begun(folder: Path) -> None:
    """Call once the epoch's journal has begun: from here on its open epoch means that there is something to send."""
    (folder / OPENING).unlink()


def _close(link: MarketLink, path: Path, epoch: int, offset: int) -> None:
    """Seal, send and close a journal that nobody writes any more."""
    try:
        seal_segment(path)
        size = path.stat().st_size
    except (FileNotFoundError, JournalUnreadable):
        size = 0  # it died before the header was written: nothing was ever recorded in it
    for at, content in _portions(path, offset, size):
        link.call_now("PUT", _put(epoch, at, content), content=content)
    link.call_now("POST", f"{PREFIX}/epochs/{epoch}/close", params={"size": size})


def _portions(path: Path, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    while offset < end:
        content = _read(path, offset, end)
        yield offset, content
        offset += len(content)


def _put(epoch: int, offset: int, content: bytes) -> str:
    return f"{PREFIX}/epochs/{epoch}/journal?offset={offset}&crc32c={google_crc32c.value(content)}&clock_ms={now_ms()}"


def _read(path: Path, offset: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(min(PORTION_BYTES, end - offset))
