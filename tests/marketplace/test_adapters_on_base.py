"""Adapters on the market: published, inspected on their base, resolved like any model, run on the base's own graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from marketplace.catalogue.publishing import publish
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.db import reading, transaction
from marketplace.market import Market
from model_store.adapter_file import seal_adapter, write_adapter
from model_store.bundle import ADAPTER, Bundle, seal
from model_store.errors import NotFound, Refusal, Unprocessable
from model_store.inspection.inspector import inspect_bundle
from serving.dataplane import DataPlane
from serving.journal import JournalWriter
from serving.memory_admission import MemoryAdmission
from serving.ports import Ports, Principal
from serving.settings import ServingSettings
from tests.marketplace.shelf import add_organisation
from tests.model_store.adapted import FIRST, adapter, adapter_bundle, answer, base_bundle, rows

ACME = Principal("key_1", "org_acme", "vendor", frozenset({"use"}))
FACTORY = Principal("key_2", "org_factory", "enterprise", frozenset({"use"}))


@pytest.fixture
def organisations(market: Market) -> Market:
    with transaction(market.engine) as session:
        add_organisation(session, "acme")
        add_organisation(session, "factory", "enterprise")
        add_organisation(session, "rival")
    return market


def private(market: Market, bundle: Bundle, owner: str = "acme") -> Any:
    return publish(market, bundle.path, organisation_id=f"org_{owner}", published_by="m", private=True)


def set_state(market: Market, name: str, state: str, visibility: str = "public") -> None:
    with transaction(market.engine) as session:
        listing = session.exec(select(Listing).where(Listing.name == name)).one()
        listing.visibility = visibility
        for version in session.exec(select(ModelVersion).where(ModelVersion.listing_id == listing.id)):
            version.state = state
    market.catalogue_changed(listing.id)


async def answers(market: Market, folder: Path, calls: list[tuple[Principal, str]]) -> tuple[list[Any], int]:
    """What each named model answers to the same rows, and how many graphs were loaded for it."""
    ports = Ports(admission=MemoryAdmission(), bundles=market.bundles)
    plane = DataPlane(ports, ServingSettings(), JournalWriter(folder, "node", 1))
    await plane.start()
    try:
        found = []
        for principal, name in calls:
            served = market.bundles.resolve(name, None, principal)
            found.append((await plane.infer(principal, served, {"x": rows(4)})).outputs["y"])
        return found, sum(each.base is None for each in plane.residency.residents())
    finally:
        await plane.stop()


async def test_factories_adapt_a_listed_base_and_all_run_on_its_graph(organisations: Market, tmp_path: Path) -> None:
    market = organisations
    base = base_bundle(tmp_path / "base", indexed=True, name="acme/base")
    private(market, base)
    set_state(market, "acme/base", "listed")
    for owner, seed in (("factory", 1), ("rival", 2)):
        made = adapter_bundle(tmp_path / owner, base, adapter(seed), f"{owner}/own")
        answered = private(market, made, owner)
        assert answered.report["passed"], answered.report["findings"]
        with reading(market.engine) as session:
            listing = session.exec(select(Listing).where(Listing.name == f"{owner}/own")).one()
            (version,) = session.exec(select(ModelVersion).where(ModelVersion.listing_id == listing.id))
        assert version.relation == "adapter"
        with reading(market.engine) as session:
            parent = session.get_one(ModelVersion, version.parent_version_id)
        assert parent.digest == base.digest
        assert listing.root_base_listing_id == parent.listing_id
    rival = Principal("key_3", "org_rival", "vendor", frozenset({"use"}))
    found, graphs = await answers(
        market, tmp_path / "journal", [(FACTORY, "factory/own"), (rival, "rival/own"), (FACTORY, "acme/base")]
    )
    for got, seed in zip(found, (1, 2, None), strict=True):
        assert np.abs(got - answer(rows(4), None if seed is None else adapter(seed))).max() < 1e-5
    assert graphs == 1
    with pytest.raises(NotFound):
        market.bundles.resolve("rival/own", None, FACTORY)


async def test_an_adapter_goes_on_where_its_base_is_retired_and_ends_where_it_is_withdrawn(
    organisations: Market, tmp_path: Path
) -> None:
    market = organisations
    base = base_bundle(tmp_path / "base", indexed=False, name="acme/base")
    private(market, base)
    set_state(market, "acme/base", "listed")
    private(market, adapter_bundle(tmp_path / "own", base, adapter(1), "factory/own"), "factory")
    set_state(market, "acme/base", "retired")
    with pytest.raises(NotFound):
        market.bundles.resolve("acme/base", None, FACTORY)
    found, _ = await answers(market, tmp_path / "journal", [(FACTORY, "factory/own")])
    assert np.abs(found[0] - answer(rows(4), adapter(1))).max() < 1e-5
    set_state(market, "acme/base", "withdrawn")
    with pytest.raises(NotFound):
        market.bundles.resolve("factory/own", None, FACTORY)


async def test_an_adapter_of_an_unreviewed_base_runs_in_the_limited_worker(
    organisations: Market, tmp_path: Path
) -> None:
    base = base_bundle(tmp_path / "base", indexed=True, name="acme/base")
    private(organisations, base)
    private(organisations, adapter_bundle(tmp_path / "own", base, adapter(1), "acme/own"))
    assert not organisations.bundles.resolve("acme/own", None, ACME).base.trusted
    found, graphs = await answers(organisations, tmp_path / "journal", [(ACME, "acme/own")])
    assert np.abs(found[0] - answer(rows(4), adapter(1))).max() < 1e-5
    assert graphs == 1


def test_what_does_not_fit_its_base_is_not_published(organisations: Market, tmp_path: Path) -> None:
    market = organisations
    base = base_bundle(tmp_path / "base", indexed=True, name="acme/base")
    private(market, base)
    set_state(market, "acme/base", "listed")
    spoilt = adapter_bundle(tmp_path / "spoilt", base, adapter(1), "factory/own")
    write_adapter(spoilt.path / ADAPTER, {"fc9.lora_A": adapter(1)[f"{FIRST}.lora_A"]})
    with pytest.raises(Refusal) as caught:
        private(market, seal(spoilt.path, spoilt.manifest), "factory")
    assert caught.value.code == "INSPECTION_FAILED"
    codes = {each["code"] for each in caught.value.details["report"]["findings"] if each["severity"] == "error"}
    assert codes == {"ADAPTER_SITE_UNKNOWN"}
    other = base_bundle(tmp_path / "other", indexed=True, name="acme/base", seed=9)
    with pytest.raises(Unprocessable, match="PARENT_CHANGED"):
        private(market, adapter_bundle(tmp_path / "stale", other, adapter(1), "factory/own"), "factory")
    hidden = base_bundle(tmp_path / "hidden", indexed=True, name="rival/base")
    private(market, hidden, "rival")
    with pytest.raises(NotFound):
        private(market, adapter_bundle(tmp_path / "peek", hidden, adapter(1), "factory/own"), "factory")
    report = inspect_bundle(spoilt.path, private=True)
    assert "ADAPTER_BASE_MISSING" in {each.code for each in report.findings}
    plain = seal_adapter(tmp_path / "again", spoilt.manifest, base, adapter(1))
    assert inspect_bundle(plain.path, private=True, base=base.path).passed
