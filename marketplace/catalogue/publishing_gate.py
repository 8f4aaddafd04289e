"""Who may have how many uploads worked on at once: whoever publishes bomb after bomb waits behind their own.

An inspection takes a limited subprocess, of which there are few, and a thread for as long as it lasts. Without a bound
one organisation's endless graphs would hold every thread of the JSON API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from model_store.errors import TooMany
from model_store.inspection.pool import MAX_CHILDREN

WAITING = 8  # uploads of one organisation beside those that are worked on
IN_ALL = 16  # worked on at once, of half as many threads as the API has
RETRY_AFTER_S = 15


@dataclass(slots=True)
class _Lane:
    places: asyncio.Semaphore
    present: int = 0


class PublishingGate:
    """Used on one event loop. A lane lives while its organisation has uploads in it."""

    def __init__(self, at_once: int = MAX_CHILDREN, waiting: int = WAITING, in_all: int = IN_ALL) -> None:
        self._at_once, self._waiting, self._in_all = at_once, waiting, in_all
        self._lanes: dict[str, _Lane] = {}
        self._working = 0

    @asynccontextmanager
    async def turn(self, organisation_id: str) -> AsyncIterator[None]:
        """Hold a place while an upload is worked on. Raises `TooMany` PUBLISHING_BUSY at once, where too many wait."""
        lane = self._lanes.setdefault(organisation_id, _Lane(asyncio.Semaphore(self._at_once)))
        if lane.present >= self._at_once + self._waiting:
            raise _busy(lane.present)
        lane.present += 1
        try:
            async with lane.places:
                if self._working >= self._in_all:
                    raise _busy(self._working)
                self._working += 1
                try:
                    yield
                finally:
                    self._working -= 1
        finally:
            lane.present -= 1
            if not lane.present:
                del self._lanes[organisation_id]


def _busy(count: int) -> TooMany:
    return TooMany(
        "PUBLISHING_BUSY",
        zh=f"正在处理的上传已有 {count} 个, 请稍候",
        en=f"{count} uploads are being worked on or wait already",
        remedy_zh=f"请在 {RETRY_AFTER_S} 秒后重试, 并减少同时上传的数量; 已上传的不受影响",
        remedy_en=f"try again in {RETRY_AFTER_S} s, with fewer uploads at once; those under way go on",
        retry_after_s=RETRY_AFTER_S,
    )


GATE = PublishingGate()
