"""What one organisation may have of free trials at once: asking in parallel gives no more than asking in turn."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine

from marketplace.choosing.service import MAX_RUNNING, MarketChooser
from marketplace.choosing.trial import TrialAllowance
from marketplace.clock import now_ms, policy_date
from marketplace.db import transaction
from marketplace.market import Market
from marketplace.usage.tables import TrialCount
from model_store.errors import Refusal, TooMany
from serving.ports import Principal
from tests.marketplace.shelf import add_organisation

FACTORY = Principal("key_1", "org_factory", "enterprise", frozenset({"choose"}), "mem_1")


@pytest.fixture
def allowance(engine: Engine) -> TrialAllowance:
    return TrialAllowance(engine)


def counted(engine: Engine, runs: int) -> None:
    """What ingest has counted for the factory today."""
    with transaction(engine) as session:
        session.merge(TrialCount(organisation_id="org_factory", day=policy_date(now_ms()).isoformat(), runs=runs))


def test_trials_asked_for_in_parallel_share_one_allowance(allowance: TrialAllowance) -> None:
    def ask(_: int) -> bool:
        try:
            allowance.take("org_factory", 300, 1_000)
        except TooMany:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(16))) == 3
    allowance.take("org_other", 1_000, 1_000)


def test_what_was_promised_and_then_counted_is_not_taken_twice(engine: Engine, allowance: TrialAllowance) -> None:
    counted(engine, 100)  # before this process began
    allowance.take("org_factory", 400, 1_000)
    counted(engine, 500)
    allowance.take("org_factory", 500, 1_000)
    with pytest.raises(TooMany):
        allowance.take("org_factory", 1, 1_000)


def test_what_did_not_run_is_given_back(allowance: TrialAllowance) -> None:
    allowance.take("org_factory", 1_000, 1_000)
    allowance.give_back("org_factory", 400)
    allowance.take("org_factory", 400, 1_000)
    with pytest.raises(TooMany):
        allowance.take("org_factory", 1, 1_000)


async def test_an_organisation_has_a_bounded_number_of_choices_under_way(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds its samples in memory, up to 256 MB of pictures."""
    with transaction(market.engine) as session:
        add_organisation(session, "factory", "enterprise")
        add_organisation(session, "other", "enterprise")
    end = asyncio.Event()

    async def until_told(*_: Any) -> dict[str, Any]:
        await end.wait()
        return {}

    monkeypatch.setattr(MarketChooser, "_choose", until_told)
    chooser = MarketChooser(market)
    other = Principal("key_2", "org_other", "enterprise", frozenset({"choose"}), "mem_2")
    table = b"power,label\n" + b"1,ok\n" * 20
    sets = {
        who.organisation: (await chooser.create_sample_set(who, filename="a.csv", content=table, form={}))["id"]
        for who in (FACTORY, other)
    }

    async def choose(who: Principal) -> str:
        try:
            return str((await chooser.choose(who, {"sample_set_id": sets[who.organisation]}))["state"])
        except Refusal as refusal:
            return refusal.code

    asked = await asyncio.gather(*(choose(FACTORY) for _ in range(MAX_RUNNING + 3)))
    assert sorted(asked) == ["CHOICES_RUNNING"] * 3 + ["running"] * MAX_RUNNING
    assert await choose(other) == "running"
    end.set()
    await asyncio.gather(*chooser._tasks)
    assert await choose(FACTORY) == "running"
    await chooser.stop()
