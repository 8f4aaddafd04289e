"""Whose turn it is on the event loop: what is held for later turns, and what one organisation may have of a turn while
another one is calling.

All that has come is read in one turn, in no order that anybody chose. Whoever sends over hundreds of connections would
fill each turn, with refusals as with answers, and everybody else would wait for the whole of it. So while another
organisation has called lately, one has a few calls of each turn; what more it has sent is held, in the order in which
it came, and between two turns the loop reads what else has come. Who calls alone is not bounded: the more of its calls
come together, the better they share runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.waiting import LastCallers

CALLS_A_TURN = 4  # some 0.2 ms of small calls; fewer would share runs with hardly anything
ANOTHER_FOR_S = 1.0  # after another organisation's call


class TurnShares:
    """Calls by organisation in the present turn, and what is held for later ones. Used on the event loop only."""

    __slots__ = ("_callers", "_had", "_held")

    def __init__(self) -> None:
        self._callers = LastCallers()
        self._had: dict[str, int] = {}
        self._held: dict[str, list[Callable[[], None]]] = {}

    def takes(self, tenant: str, is_held: bool = False) -> bool:
        """Whether one more call of this organisation may be looked at in this turn; then it is counted. False where it
        is to be held, as it was (`is_held`) or because others of its organisation are."""
        had = self._had
        if not had:
            asyncio.get_running_loop().call_soon(had.clear)
        self._callers.called(tenant)
        calls = had.get(tenant, 0)
        is_last = calls >= CALLS_A_TURN or (tenant in self._held and not is_held)
        if is_last and self._callers.another_since(tenant, ANOTHER_FOR_S):
            return False
        had[tenant] = calls + 1
        return True

    def hold(self, tenant: str, again: Callable[[], None]) -> None:
        """Call this in the next turn of the event loop, in the order in which they came; or in a later one, where more
        is held of this organisation than it may have of a turn."""
        if not self._held:
            asyncio.get_running_loop().call_soon(self._go_on)
        self._held.setdefault(tenant, []).append(again)

    def _go_on(self) -> None:
        held, self._held = self._held, {}
        for tenant, calls in held.items():
            most = CALLS_A_TURN if self._callers.another_since(tenant, ANOTHER_FOR_S) else len(calls)
            for again in calls[:most]:
                again()
            for again in calls[most:]:
                self.hold(tenant, again)
