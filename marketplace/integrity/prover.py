"""Proofs of transfers and journal segments: each day's tree is built once, in a file, and looked up there."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlmodel import Session

from marketplace.clock import policy_date
from marketplace.integrity.days import SegmentKey, each_leaf, key_of, list_days
from marketplace.integrity.merkle import siblings, upper
from marketplace.integrity.records import Records
from marketplace.integrity.tables import JournalSegment

_HASH, _ID = 32, 8  # bytes


@dataclass(slots=True)
class _Tree:
    """Where a day's tree stands among the nodes, level by level, the leaves first; whose the leaves are: transfers from
    `first_id` on among the ids, then segments."""

    day: str
    size: int  # leaves
    levels: list[int]  # where each begins
    first_id: int
    transfers: int
    segments: dict[SegmentKey, int]


class Prover:
    """What it holds in memory grows with the days and their segments, not with their transfers."""

    def __init__(self, session: Session, folder: Path) -> None:
        """`folder` takes the trees, in files that go with the prover."""
        self._session = session
        self._layouts = {row.day: row.layout for row in list_days(session)}
        self._days: dict[str, _Tree] = {}
        self._nodes, self._ids = Records(folder, _HASH), Records(folder, _ID)
        self._files = ExitStack()
        for file in (self._nodes, self._ids):
            self._files.callback(file.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def transfer(self, transfer_id: int, posted_at_ms: int) -> dict[str, Any] | None:
        """Day, place and path in that day's tree; None where the day is not closed yet. `KeyError`: it is not in it."""
        tree = self._day(posted_at_ms)
        if tree is None:
            return None
        wanted, end = transfer_id.to_bytes(_ID), tree.first_id + tree.transfers
        at = bisect_left(self._ids, wanted, tree.first_id, end)
        if at == end or self._ids[at] != wanted:
            raise KeyError(transfer_id)
        return self._proof(tree, at - tree.first_id)

    def segment(self, row: JournalSegment) -> dict[str, Any] | None:
        """As `transfer`; None too where its day's tree has no segments."""
        tree = self._day(row.recorded_at_ms)
        index = None if tree is None else tree.segments.get(key_of(row))
        return None if tree is None or index is None else self._proof(tree, index)

    def _proof(self, tree: _Tree, index: int) -> dict[str, Any]:
        path = [self._nodes[tree.levels[level] + at].hex() for level, at in siblings(index, tree.size)]
        return {"day": tree.day, "index": index, "size": tree.size, "path": path}

    def _day(self, at_ms: int) -> _Tree | None:
        day = policy_date(at_ms)
        name = day.isoformat()
        layout = self._layouts.get(name)
        if layout is None:
            return None
        if name not in self._days:
            self._days[name] = self._build(name, day, layout)
        return self._days[name]

    def _build(self, name: str, day: date, layout: int) -> _Tree:
        first_id, first = len(self._ids), len(self._nodes)
        segments: dict[SegmentKey, int] = {}
        for whose, leaf in each_leaf(self._session, day, layout):
            if isinstance(whose, int):
                self._ids.append(whose.to_bytes(_ID))
            else:
                segments[whose] = len(self._nodes) - first
            self._nodes.append(leaf)
        size, levels, end = len(self._nodes) - first, [first], len(self._nodes)
        while end - levels[-1] > 1:
            for node in upper(self._nodes.between(levels[-1], end)):
                self._nodes.append(node)
            levels.append(end)
            end = len(self._nodes)
        return _Tree(name, size, levels, first_id, len(self._ids) - first_id, segments)
