"""The soak of `make soak`, short: mixed load without an error. An hour shows whether memory stays flat, ten seconds
that it does not run away."""

from __future__ import annotations

from pathlib import Path

from tests.load.servers import load_node
from tests.load.soak import soak


async def test_mixed_load_makes_no_error_and_memory_does_not_run_away(tmp_path: Path) -> None:
    with load_node(tmp_path) as node:
        found = await soak(node, 10)
    assert not found["errors"], found
    assert found["right"]
    _, before, after = found["rss_mib"]
    assert after < before * 1.25
