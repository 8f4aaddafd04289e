"""The simulator, short: sound worlds, every planted bug caught by its seed, and a few real histories."""

import pytest

from marketplace.ledger import claim_postings
from tests.postgres import postgres_server
from tests.simulator.__main__ import find_plant, main, run_real_seed, run_seed
from tests.simulator.plants import PLANTS
from tests.simulator.world import World


@pytest.mark.parametrize("seed", range(6))
def test_no_invariant_is_violated_in_twenty_thousand_steps(seed):
    _, wrong, told = run_seed(seed, 20_000)
    assert not wrong
    assert told["kills"] > 0
    assert told["power cuts"] > 0
    assert told["charged"] > 500


@pytest.mark.parametrize("name", sorted(PLANTS))
def test_every_planted_bug_is_caught(name):
    assert find_plant(name) is not None


def test_a_seed_is_one_history():
    first, second = World(11), World(11)
    first.run(3_000)
    second.run(3_000)
    assert list(first.market.books.transfers) == list(second.market.books.transfers)
    assert first.told() == second.told()


def test_a_caught_bug_names_its_seed_and_the_exit_code_tells(capsys):
    assert main(["--plant", "no-fence"]) == 0
    assert "seed " in capsys.readouterr().out


def test_a_violation_ends_with_1_and_its_seed(capsys, monkeypatch):
    monkeypatch.setattr("tests.simulator.__main__.run_seed", _broken)
    assert main(["--seeds", "1", "--steps", "10", "--jobs", "1"]) == 1
    assert "seed 0: world 0, step 7" in capsys.readouterr().out


def _broken(seed, steps):
    return seed, "world 0, step 7: Violation: a fen is missing", {}


@pytest.mark.parametrize(("seed", "payee"), [(0, "platform"), (1, "provider")])
def test_real_histories_on_sqlite(seed, payee):
    _, wrong, told = run_real_seed(seed, 1_500, "")
    assert not wrong
    assert told["charged"] > 0
    assert told[f"fen paid to {payee}"] > 0


def test_a_payment_that_is_booked_to_the_wrong_payee_is_caught_on_a_real_store(monkeypatch):
    right = claim_postings.p10_paid
    monkeypatch.setattr(claim_postings, "p10_paid", lambda *facts: right(*facts[:3], "platform", facts[4]))
    assert "provider is paid; account: (booked, right)" in run_real_seed(1, 1_500, "")[1]


def test_a_real_history_on_postgresql():
    server = postgres_server()
    url = next(server)
    try:
        assert run_real_seed(5, 1_500, url)[1] == ""
    finally:
        server.close()
