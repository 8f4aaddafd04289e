"""A node far beyond what it can do: each answer is right or a 429 that says when to come back, and none hangs. How much
it still gets done is measured by `make overload`, not asserted here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.load.callers import call_at_rate, call_in_turn
from tests.load.node import FAST, SLOW
from tests.load.servers import LoadNode, load_node

FACTORY, FLOOD = "load-key-factory", "load-key-flood"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadNode]:
    with load_node(tmp_path_factory.mktemp("load")) as started:
        yield started


async def test_beyond_capacity_every_answer_is_right_or_a_429_and_none_hangs(node: LoadNode) -> None:
    warm = await call_in_turn(node.port, FLOOD, SLOW, 0.5, connections=2)
    assert warm.right
    flood, factory, fast = await asyncio.gather(
        call_at_rate(node.port, FLOOD, SLOW, 2.0, 800),
        call_in_turn(node.port, FACTORY, SLOW, 2.0),
        call_in_turn(node.port, FACTORY, FAST, 2.0),
    )
    assert flood.refused  # it was too much
    assert flood.right
    assert flood.sent == flood.right + flood.refused
    for quiet in (factory, fast):  # who does not flood is not refused
        assert quiet.right == quiet.sent


async def test_with_deadlines_every_answer_is_right_or_says_why_not(node: LoadNode) -> None:
    flood = await call_at_rate(node.port, FLOOD, SLOW, 1.5, 800, **{"X-Deadline-Ms": "300"})
    late = sum(count for what, count in flood.other.items() if what.startswith("504"))
    assert flood.right
    assert flood.sent == flood.right + flood.refused + late, flood.other
