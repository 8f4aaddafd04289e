"""kill -9 under eight clients that log what was acknowledged; `python -m tests.killnine` is the long run."""

from __future__ import annotations

from tests.killnine.run import kill_nine

SEED = 4  # of its three kills one comes while the market starts again


def test_a_market_that_is_killed_under_load_loses_doubles_and_strands_nothing(tmp_path):
    verdict = kill_nine(tmp_path, kills=3, clients=8, seed=SEED)
    assert verdict.faults == []
    assert verdict.acknowledged_not_posted == 0
    assert verdict.posted_not_acknowledged <= verdict.in_flight_at_kills
    assert verdict.kills_while_starting >= 1
    assert verdict.acknowledged > 100
