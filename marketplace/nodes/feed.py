"""What changed, in order: nodes follow it, so that a price, a key or a listing holds there within a moment too."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["catalogue", "terms", "keys"]
KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Change:
    """`ids`: listings (catalogue, terms) or keys that changed; none named means all of them."""

    number: int
    kind: Kind
    ids: tuple[str, ...]


class Feed:
    """The changes since this start, the last thousand of them. Safe from several threads."""

    def __init__(self) -> None:
        self.start = secrets.token_hex(8)  # of another start the numbers mean nothing
        self.latest = 0
        self.is_over: Callable[[], bool] = lambda: False  # the market is stopping: nobody should wait for more
        self._kept: deque[Change] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def tell(self, kind: Kind, *ids: str) -> None:
        """Call after the commit."""
        with self._lock:
            self.latest += 1
            self._kept.append(Change(self.latest, kind, ids))

    def since(self, start: str, number: int) -> list[Change] | None:
        """The changes after that one, oldest first; None where they are not all kept: read everything again."""
        with self._lock:
            if start != self.start or number > self.latest or number < self.latest - len(self._kept):
                return None
            return [change for change in self._kept if change.number > number]
