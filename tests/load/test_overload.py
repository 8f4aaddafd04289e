"""A node far beyond what it can do: each answer is right or a 429 that says when to come back, none hangs, and what it
computes reaches somebody. Ratios of counts; how fast it is, `make overload` measures."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.load.callers import call_at_rate, call_in_turn
from tests.load.node import FACTORY_KEY as FACTORY
from tests.load.node import FAST, SLOW
from tests.load.node import FLOOD_KEY as FLOOD
from tests.load.servers import LoadNode, load_node

SECONDS = 2.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadNode]:
    with load_node(tmp_path_factory.mktemp("load")) as started:
        yield started


def runs_of(node: LoadNode) -> int:
    """How often the node has run the slow model."""
    url = f"http://127.0.0.1:{node.port}/v2/models/{SLOW.replace('/', '--')}/stats"
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {FACTORY}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        stats: dict[str, Any] = json.load(answer)["model_stats"][0]
    return int(stats["execution_count"])


async def test_beyond_capacity_every_answer_is_right_or_a_429_and_none_hangs(node: LoadNode) -> None:
    alone = await call_in_turn(node.port, FLOOD, SLOW, SECONDS, connections=2)
    assert alone.right == alone.sent
    before = runs_of(node)
    flood, factory, fast = await asyncio.gather(
        call_at_rate(node.port, FLOOD, SLOW, SECONDS, 800),
        call_in_turn(node.port, FACTORY, SLOW, SECONDS),
        call_in_turn(node.port, FACTORY, FAST, SECONDS),
    )
    after = runs_of(node)
    assert flood.right
    assert flood.sent == flood.right + flood.refused
    assert flood.refused > flood.sent / 2  # it was far too much; each of them was told when to come back
    for quiet in (factory, fast):  # who does not flood is not refused
        assert quiet.right == quiet.sent
    assert factory.right + flood.right > alone.right / 4  # it works on: as long, and what it still got done
    assert after - before == flood.right + factory.right  # and no run was in vain


async def test_with_deadlines_every_answer_is_right_or_says_why_not(node: LoadNode) -> None:
    before = runs_of(node)
    flood = await call_at_rate(node.port, FLOOD, SLOW, SECONDS, 800, headers={"X-Deadline-Ms": "300"})
    runs = runs_of(node) - before
    late = sum(count for what, count in flood.other.items() if what.startswith("504"))
    assert flood.right
    assert flood.sent == flood.right + flood.refused + late, flood.other
    assert flood.refused > late  # most are told at once, not when their time is over
    assert flood.right > runs / 2  # and most of what was run came in time
