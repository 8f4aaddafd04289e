"""What all processes behind one port know, as one: statistics, drift, shadows, a canary's tally, what is unloaded.

Each process counts by itself, on its own event loop; who is asked asks the others (`serving.siblings`) and adds up. A
process that does not answer just now is left out, as in `/metrics`. Alone, a process answers from its own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from serving.drift import WatchCounts, drift_report
from serving.ports import ServedVersion
from serving.shadow import Comparison
from serving.statistics import Statistics

if TYPE_CHECKING:
    from serving.dataplane import DataPlane

TALLIES, STATISTICS, DRIFT, SHADOW, UNLOADED = "tallies", "statistics", "drift", "shadow", "unloaded"


class Elsewhere(Protocol):
    """The other processes."""

    async def ask(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        """What each of them tells (`JoinedFigures.told`); those that do not answer are left out."""

    def ask_now(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        """As `ask`, blocking: never on the event loop."""


class Tally(msgspec.Struct):
    """What `process` (node and epoch), since it began at `started_ms`, has counted of a model's versions."""

    process: str
    started_ms: int
    versions: dict[int, tuple[int, int]]  # version → answered, broken


class JoinedFigures:
    """A data plane's figures together with those of the processes beside it. `…_now` blocks: for threads."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.elsewhere: Elsewhere | None = None

    def told(self, what: str, query: Mapping[str, Any]) -> bytes | None:
        """What this process tells another one that asks; None: that is nothing it knows. On the event loop."""
        own: dict[str, Callable[..., Any]] = {
            TALLIES: self._tally,
            STATISTICS: self._statistics,
            DRIFT: self._drift,
            SHADOW: self._shadow,
            UNLOADED: self._plane.residency.unloaded,
        }
        return msgspec.json.encode(own[what](**query)) if what in own else None

    async def statistics(self, name: str | None = None) -> Statistics:
        """Of every version that was called; with a name, of that model's. For reading only."""
        if self.elsewhere is None:
            return self._plane.statistics
        others = await self.elsewhere.ask(STATISTICS, {"name": name})
        return _joined_statistics(self._statistics(name), others)

    def statistics_now(self, name: str | None = None) -> Statistics:
        if self.elsewhere is None:
            return self._plane.statistics
        return _joined_statistics(self._statistics(name), self.elsewhere.ask_now(STATISTICS, {"name": name}))

    async def drift(self, name: str, version: int, organisation: str) -> dict[str, Any]:
        """As `DriftBook.report`."""
        query: dict[str, Any] = {"name": name, "version": version, "organisation": organisation}
        others = [] if self.elsewhere is None else await self.elsewhere.ask(DRIFT, query)
        return drift_report([self._drift(**query), *_decoded(others, WatchCounts)])

    def drift_now(self, name: str, version: int, organisation: str) -> dict[str, Any]:
        query: dict[str, Any] = {"name": name, "version": version, "organisation": organisation}
        return drift_report([self._drift(**query), *_decoded(self._ask_now(DRIFT, query), WatchCounts)])

    def comparison_now(self, served: ServedVersion) -> dict[str, Any] | None:
        """As `ShadowBook.report`."""
        if served.shadow is None:
            return None
        query = {"version_id": served.version_id, "shadow_id": served.shadow.version_id}
        told = [self._shadow(**query), *_decoded(self._ask_now(SHADOW, query), Comparison | None)]
        found = [each for each in told if each is not None]
        return sum(found[1:], found[0]).as_dict() if found else None

    def tallies_now(self, name: str) -> list[Tally]:
        """Each process's own."""
        return [self._tally(name), *_decoded(self._ask_now(TALLIES, {"name": name}), Tally)]

    async def unloaded(self) -> frozenset[tuple[str, bool]]:
        """Digest and trust of what was unloaded by order, and what no process has loaded since."""
        own = self._plane.residency.unloaded()
        others = [] if self.elsewhere is None or not own else await self.elsewhere.ask(UNLOADED, {})
        return own.intersection(*_decoded(others, frozenset[tuple[str, bool]]))

    # --- this process's own -------------------------------------------------------------------------------------------

    def _tally(self, name: str) -> Tally:
        own, journal = self._plane.statistics, self._plane.journal
        found = [(version, own.of(name, version)) for version in own.called(name)]
        counted = {number: (each.succeeded, each.broken) for number, each in found}
        return Tally(f"{journal.node}-{journal.epoch}", int(own.started_at * 1000), counted)

    def _statistics(self, name: str | None) -> list[dict[str, Any]]:
        return self._plane.statistics.told(name)

    def _drift(self, name: str, version: int, organisation: str) -> WatchCounts:
        return self._plane.drift.counts(name, version, organisation)

    def _shadow(self, version_id: str, shadow_id: str) -> Comparison | None:
        return self._plane.shadows.found(version_id, shadow_id)

    def _ask_now(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        return [] if self.elsewhere is None else self.elsewhere.ask_now(what, query)


def _joined_statistics(own: list[dict[str, Any]], others: Sequence[bytes]) -> Statistics:
    told = [each for content in others for each in msgspec.json.decode(content)]
    return Statistics.joined([*own, *told])


def _decoded(contents: Sequence[bytes], kind: Any) -> list[Any]:
    return [msgspec.json.decode(each, type=kind) for each in contents]
