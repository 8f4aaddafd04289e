"""The build of the MiniLM base beside a market: when it does nothing, and that stopping it leaves nothing behind."""

from __future__ import annotations

import time

import pytest

from adapters import workshop
from marketplace.adapting.service import MarketAdapting
from marketplace.db import transaction
from marketplace.market import Market
from marketplace.minilm import NAME, MiniLmBuild
from model_store.errors import Refusal
from serving.ports import Principal
from tests.marketplace.shelf import add_listing, add_organisation

FACTORY = Principal(key_id="key_f", organisation="org_f", role="enterprise", scopes=frozenset({"adapt"}))


def test_a_market_that_has_it_builds_nothing(market: Market) -> None:
    with transaction(market.engine) as session:
        add_organisation(session, "pearl")
        add_listing(session, NAME)
    build = MiniLmBuild(market)
    build.start()
    build._thread.join(10)
    assert not build._thread.is_alive()
    assert build._process is None


def test_without_the_workshop_it_waits_and_can_be_stopped(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workshop.PACKAGES, "no_such_module", "no-such-distribution")
    build = MiniLmBuild(market)
    build.start()
    build.stop()
    assert not build._thread.is_alive()
    assert build._process is None


def test_stopping_it_kills_the_child_and_removes_what_was_half_made(market: Market) -> None:
    (market.settings.home / "logs").mkdir()
    build = MiniLmBuild(market)
    build.start()
    while build._process is None:
        time.sleep(0.01)
    build.stop()
    assert build._process.poll() is not None
    assert not (market.settings.home / "tmp" / "minilm").exists()
    assert not (market.settings.home / "starter-extra" / "starter.yaml").exists()


def test_adapting_is_refused_clearly_until_the_workshop_is_there(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workshop.PACKAGES, "no_such_module", "no-such-distribution")
    request = {"recipe": "tabular_retrain", "sample_set_id": "smp_x"}
    with pytest.raises(Refusal, match="WORKSHOP_NOT_READY"):
        MarketAdapting(market)._create(FACTORY, request)
