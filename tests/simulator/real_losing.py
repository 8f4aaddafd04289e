"""Nodes elsewhere that are lost with their journals, on a real market: written off by two persons, or come back whole,
late or never. Its actions belong to a `RealWorld`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marketplace.db import transaction
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch, take_late
from marketplace.usage.tables import Usage
from marketplace.vouchers import write_offs
from marketplace.vouchers.tables import EpochWriteOff, NodeEpoch
from model_store.errors import Refusal
from serving.journal import segment_path
from serving.journal_format import UsageEntry, read_segment
from tests.marketplace.town import CHEN, LIN, Node

if TYPE_CHECKING:
    from tests.simulator.real import RealWorld

PATIENCE_MS = 3 * 3_600_000  # longer than any lease runs, and than a node may be silent
MODELS = ("vendor/steel", "mill/copper")  # of two providers


@dataclass
class Lost:
    """A node that is gone; the market has so much of its journal as its file holds, `whole` is all there was."""

    name: str
    epoch: int
    path: Path
    whole: bytes
    proposed: str = ""
    # Bytes that were here when it was written off: what comes later counts only once the journal is whole.
    written_off_at: int = 0


class RealLosing:
    def __init__(self, world: RealWorld) -> None:
        self.world = world
        self.lost: list[Lost] = []
        self.uncovered: set[str] = set()  # records of journals that came late: they may be charged to nobody
        self._number = 0

    def lose(self) -> int:
        """A node elsewhere works for a while, part of its journal arrives, and it is gone."""
        world, dice = self.world, self.world.dice
        self._number += 1
        node = world.town.node(f"edge{self._number}")
        self._call(node)
        node.flush()
        self._call(node)
        node.die()
        path = segment_path(world.town.folder, node.name, node.epoch)
        arrived = world.town.get(NodeEpoch, (node.name, node.epoch)).offset_bytes
        lost = Lost(node.name, node.epoch, path, path.read_bytes())
        path.write_bytes(lost.whole[: max(arrived, dice.choice((arrived, len(lost.whole) // 2)))])
        self.lost.append(lost)
        world.counts["lost"] += 1
        return max(1, len(node.acknowledged))

    def _call(self, node: Node) -> None:
        world, before = self.world, len(node.acknowledged)
        with contextlib.suppress(Refusal):
            node.call(world.dice.choice(MODELS), world.dice.choice((1, 20, 200)), units=world.dice.choice((1, 3, 40)))
        made = node.acknowledged[before:]
        world.written.update((record.usage_id, record) for record in made)
        world.counts["calls"] += len(made)

    # --- two persons ------------------------------------------------------------------------------------------------

    def propose(self) -> int:
        if self.lost:
            lost = self.world.dice.choice(self.lost)
            with contextlib.suppress(Refusal), transaction(self.world.town.engine) as session:  # its leases may run yet
                lost.proposed = write_offs.propose(
                    session, lost.name, lost.epoch, "lost", member=CHEN, at_ms=self.world.town.now, seen_at_ms=None
                ).id
        return 1

    def decide(self) -> int:
        proposed = [lost for lost in self.lost if lost.proposed]
        if proposed:
            self._decide(self.world.dice.choice(proposed), self.world.dice.choice(("approve", "approve", "decline")))
        return 1

    def _decide(self, lost: Lost, decision: str) -> None:
        """What is here of the journal is ingested before, as the route does it."""
        town, row_id, lost.proposed = self.world.town, lost.proposed, ""
        here = lost.path.stat().st_size
        Ingest(town.engine, town.folder, lost.name).drain(lost.name, lost.epoch)
        with contextlib.suppress(Refusal), transaction(town.engine) as session:
            row = write_offs.get_write_off(session, row_id)
            write_offs.decide(session, row, decision, member=LIN, at_ms=town.now, seen_at_ms=None)
            if row.state == "approved":
                lost.written_off_at = here
                self.world.counts["written off"] += 1

    # --- the journal --------------------------------------------------------------------------------------------------

    def arrive(self) -> int:
        """More of a journal."""
        if self.lost:
            lost = self.world.dice.choice(self.lost)
            size = lost.path.stat().st_size
            more = self.world.dice.randint(0, len(lost.whole) - size)
            with lost.path.open("ab") as file:
                file.write(lost.whole[size : size + more])
        return 1

    def turn_up(self) -> int:
        if self.lost:
            self._turn_up(self.world.dice.choice(self.lost))
        return 1

    def _turn_up(self, lost: Lost) -> None:
        """All of it."""
        town = self.world.town
        self.lost.remove(lost)
        lost.path.write_bytes(lost.whole)
        if town.get(NodeEpoch, (lost.name, lost.epoch)).state in ("written_off", "late"):
            known = {row.usage_id for row in town.rows(Usage)}
            self.uncovered |= {usage_id for usage_id in _ids(lost.path) if usage_id not in known}
            take_late(town.engine, town.folder, lost.name, lost.epoch)
            self.world.counts["turned up late"] += 1
        else:
            close_epoch(town.engine, town.folder, lost.name, lost.epoch)

    def finish(self) -> None:
        """In the end a third of what is lost comes, a third comes late, and a third never does."""
        world = self.world
        world.town.now += PATIENCE_MS
        for lost in [*self.lost]:
            how = world.dice.choice(("comes", "comes late", "never"))
            if how != "comes":
                self._write_off(lost)
            if how != "never":
                self._turn_up(lost)
                continue
            lost.path.write_bytes(lost.whole[: lost.written_off_at])
            came = set(_ids(lost.path))
            lost.path.write_bytes(lost.whole)
            world.lost |= {usage_id for usage_id in _ids(lost.path) if usage_id not in came}

    def _write_off(self, lost: Lost) -> None:
        town = self.world.town
        if town.get(NodeEpoch, (lost.name, lost.epoch)).state != "open":
            return  # already
        with transaction(town.engine) as session:
            live = [row for row in write_offs.list_write_offs(session) if _is_live(row, lost)]
            row = live[0] if live else write_offs.propose(
                session, lost.name, lost.epoch, "lost", member=CHEN, at_ms=town.now, seen_at_ms=None
            )  # fmt: skip
            lost.proposed = row.id
        self._decide(lost, "approve")


def _is_live(row: EpochWriteOff, lost: Lost) -> bool:
    return (row.node, row.epoch, row.state) == (lost.name, lost.epoch, "proposed")


def _ids(path: Path) -> list[str]:
    """Of every record in a journal, up to where it is torn."""
    if path.stat().st_size < 100:  # not even the header may be there
        return []
    return [entry.usage.usage_id for entry in read_segment(path).entries if isinstance(entry, UsageEntry)]
