"""Idempotency-Key: the same key with the same payload runs again under the same usage id and is billed once.

Per node (the documentation says so), bounded, for 24 hours, rebuilt at start from the journal. What is kept of a key is
a digest with its organisation, so that two organisations never meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from serving.errors.requests import idempotency_conflict, request_field
from serving.journal import JournalUnreadable, UsageEntry, read_segment
from serving.journal_format import SUFFIX

_log = logging.getLogger("algomart.idempotency")
KEEP_MS = 24 * 3600 * 1000
MAX_KEY_CHARACTERS = 200
PORTION = 10_000


@dataclass(slots=True)
class Remembered:
    """One key. `billed` once its first run has been journalled; `running` while a run that may bill is under way."""

    payload: str
    usage_id: str
    at_ms: int
    amount_micro: int = 0
    billed: bool = False
    running: asyncio.Future[None] | None = None


def key_digest(organisation: str, key: str) -> str:
    """BLAKE2b-128 of organisation and key, hexadecimal. Raises `BadInput` REQUEST_FIELD for an unlawful key."""
    if not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
        raise request_field(
            "idempotency-key",
            f"须为 1 至 {MAX_KEY_CHARACTERS} 个可打印字符",
            f"must be 1 to {MAX_KEY_CHARACTERS} printable characters",
        )
    return hashlib.blake2b(f"{organisation}\0{key}".encode(), digest_size=16).hexdigest()


class IdempotencyTable:
    """Keys of the last 24 hours, the oldest leaving first. Event loop only."""

    def __init__(self, max_entries: int) -> None:
        self._max = max_entries
        self._entries: OrderedDict[str, Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def claim(self, digest: str, payload: str, usage_id: str) -> Remembered:
        """The entry of a key, new or known. While another run that may bill is under way, wait for its outcome.

        The caller who gets an entry that is not `billed` bills it and calls `finish`. Raises `Conflict`
        IDEMPOTENCY_CONFLICT where the key was used with another payload.
        """
        while True:
            at = time.time_ns() // 1_000_000
            entry = self._entries.get(digest)
            if entry is not None and entry.running is None and entry.at_ms < at - KEEP_MS:
                del self._entries[digest]
                entry = None
            if entry is None:
                entry = self._entries[digest] = Remembered(payload, usage_id, at)
                self._trim(at)
            if entry.payload != payload:
                raise idempotency_conflict()
            if entry.billed:
                return entry
            if entry.running is None:
                entry.running = asyncio.get_running_loop().create_future()
                return entry
            await asyncio.shield(entry.running)

    def finish(self, digest: str, entry: Remembered, amount_micro: int | None) -> None:
        """The run of a claimed entry ended: billed with this amount, or (None) not billed and the key free again."""
        if amount_micro is None:
            if self._entries.get(digest) is entry:
                del self._entries[digest]
        else:
            entry.billed, entry.amount_micro = True, amount_micro
        running, entry.running = entry.running, None
        if running is not None and not running.done():
            running.set_result(None)

    def remember(self, entries: dict[str, Remembered]) -> None:
        """Add what the journal told; keys already used since the start win."""
        for digest, entry in sorted(entries.items(), key=lambda item: item[1].at_ms):
            self._entries.setdefault(digest, entry)
        self._trim(time.time_ns() // 1_000_000)

    def _trim(self, at_ms: int) -> None:
        while self._entries:
            digest, oldest = next(iter(self._entries.items()))
            if oldest.running is not None or (len(self._entries) <= self._max and oldest.at_ms >= at_ms - KEEP_MS):
                return
            del self._entries[digest]


def remembered_from_journals(folder: Path, now_ms: int, except_path: Path | None = None) -> dict[str, Remembered]:
    """Keys of the last 24 hours in a folder of journals. Blocking; what cannot be read is said and passed over."""
    found: dict[str, Remembered] = {}
    since = now_ms - KEEP_MS
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path == except_path or path.stat().st_mtime * 1000 < since:
            continue
        offset = 0
        try:
            while True:
                segment = read_segment(path, offset, limit=PORTION)
                for entry in segment.entries:
                    if isinstance(entry, UsageEntry) and entry.idempotency and entry.usage.occurred_at_ms >= since:
                        found[entry.idempotency] = _remembered(entry)
                offset = segment.next_offset
                if not segment.more:
                    break
        except (JournalUnreadable, OSError) as error:
            _log.warning("journal %s: %s", path.name, error)
    return found


def _remembered(entry: UsageEntry) -> Remembered:
    usage = entry.usage
    name = usage.model.partition("@")[0]
    return Remembered(f"{name} {usage.request_digest}", usage.usage_id, usage.occurred_at_ms, usage.amount_micro, True)
