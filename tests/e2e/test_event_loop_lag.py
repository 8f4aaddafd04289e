"""The process behind the port keeps answering while an inspection, an adaptation and a choice run beside it.

How late its event loop was is measured by `tests.bench.lag` and told in docs/benchmarks.md; here no time is asserted,
only that every call is answered, and what share of the calls a second that are answered otherwise.
"""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

from tests.bench.lag import as_json, as_markdown, loop_lag, measure
from tests.live import LiveMarket

KEPT_SHARE = 0.2  # of the calls a second; on two cores, one of which the jobs keep busy, nearly all are kept


@pytest.fixture(scope="module")
def measured(live_market: LiveMarket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Calls and health checks in a steady rhythm, alone and while the three run at once."""
    folder = tmp_path_factory.mktemp("lag")
    found = measure(live_market.url, live_market.keys, folder, seconds=3, iterations=200, choices=10)
    print(as_markdown(as_json(found)))
    return found


def test_an_inspection_an_adaptation_and_a_choice_all_come_to_their_end(measured: dict[str, Any]) -> None:
    assert measured["failures"] == []
    assert min(measured["done"].values()) >= 1


def test_every_call_and_health_check_meanwhile_is_answered(measured: dict[str, Any]) -> None:
    for stretch in ("alone", "jobs"):
        for probe in ("calls", "health"):
            answered = measured[stretch][probe]
            assert answered.failures == []
            assert answered.latencies_ms


def test_calls_are_answered_at_a_good_part_of_the_rate_that_they_are_alone(measured: dict[str, Any]) -> None:
    assert measured["ratio"] > KEPT_SHARE


def test_the_market_counts_its_event_loops_lag_all_the_while(measured: dict[str, Any]) -> None:
    for stretch in ("alone", "jobs"):
        lag = measured[stretch]["loop_lag"]
        assert lag["+Inf"] > 0
        assert list(lag.values()) == sorted(lag.values())


def test_the_histogram_grows_with_a_process_that_is_held(live_market: LiveMarket) -> None:
    before = loop_lag(live_market.url)
    process = psutil.Process(live_market.pid)
    process.suspend()  # as a loop that is held: nothing in it runs
    try:
        time.sleep(1.5)
    finally:
        process.resume()
    while (after := loop_lag(live_market.url))["+Inf"] <= before["+Inf"]:
        time.sleep(0.05)
    assert after["+Inf"] - after["1000"] > before["+Inf"] - before["1000"]


def test_usage_is_posted_by_a_process_beside_it(live_market: LiveMarket) -> None:
    children = psutil.Process(live_market.pid).children()
    commands = [" ".join(child.cmdline()) for child in children]
    assert [command for command in commands if "marketplace.usage.child" in command]
