"""A factory adapts a listed model on its own rows: a subprocess trains, the result is inspected, published, private."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine
from sqlmodel import select

from adapters.jobs import InProcessRunner, JobSpec
from marketplace.adapting.service import MarketAdapting
from marketplace.catalogue.publishing import publish
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.choosing.tables import SampleSet
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from model_store.errors import Refusal
from serving.ports import Principal
from tests.marketplace.shelf import add_organisation

FACTORY = Principal(key_id="key_f", organisation="org_dongda", role="enterprise", scopes=frozenset({"adapt", "use"}))
OTHER = Principal(key_id="key_o", organisation="org_other", role="enterprise", scopes=frozenset({"adapt", "use"}))


def breast_cancer() -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    frame = data.frame.copy()
    frame["diagnosis"] = np.array(["malignant", "benign"])[frame.pop("target")]
    return frame.sample(frac=1, random_state=1).reset_index(drop=True)


@pytest.fixture
def shelf(market: Market, engine: Engine, tmp_path: Path) -> Market:
    """A vendor's listed classifier, and a factory's sample set."""
    with transaction(engine) as session:
        add_organisation(session, "acme")
        add_organisation(session, "dongda", kind="enterprise")
        add_organisation(session, "other", kind="enterprise")
    frame, vendor = breast_cancer(), tmp_path / "vendor"
    vendor.mkdir()
    frame.iloc[:280].to_parquet(vendor / "table.parquet")
    spec = JobSpec(recipe="tabular_retrain", data=str(vendor), out=str(tmp_path / "made"), name="acme/tumour",
                   label_column="diagnosis", params={"iterations": 30})  # fmt: skip
    made = InProcessRunner().run("vendor", spec, lambda _: None)
    assert made.state == "done", made.error
    published = publish(market, Path(made.outcome["bundle"]), organisation_id="org_acme", published_by="mem_acme",
                        private=True)  # fmt: skip
    samples = market.settings.home / "samples" / "smp_one"
    samples.mkdir(parents=True)
    frame.iloc[280:].to_parquet(samples / "table.parquet")
    with transaction(engine) as session:
        version = session.get_one(ModelVersion, published.version_id)
        listing = session.get_one(Listing, version.listing_id)
        version.state = listing.status = "listed"  # as a review would; the card of a made-up vendor would not pass one
        listing.visibility = "public"
        session.add(version)
        session.add(listing)
        session.add(
            SampleSet(
                id="smp_one",
                organisation_id="org_dongda",
                kind="table",
                filename="rows.csv",
                rows=289,
                label_column="diagnosis",
                sha256="0" * 64,
                expires_at_ms=now_ms() + 3_600_000,
            )
        )
    market.catalogue_changed()
    return market


async def adapted(market: Market, **request: Any) -> dict[str, Any]:
    """One job from the request to its end, run in a limited subprocess by the worker's own thread."""
    adapting = MarketAdapting(market)
    adapting.start()
    try:
        created = await adapting.create(FACTORY, {"sample_set_id": "smp_one", **request})
        jobs = [job async for job in adapting.events(FACTORY, created["id"])]
    finally:
        adapting.stop()
    return jobs[-1]


async def test_a_calibrated_derivative_is_private_and_carries_its_parent(shelf: Market, engine: Engine) -> None:
    job = await adapted(shelf, recipe="tabular_calibrate", model="acme/tumour")
    assert job["state"] == "done", job["error"]
    result = job["result"]
    assert (result["name"], result["version"], result["relation"]) == (
        "dongda/tumour-tabular-calibrate",
        1,
        "calibrated",
    )
    assert [metric["name"] for metric in result["metrics"]] == [metric["name"] for metric in result["parent_metrics"]]
    assert result["call"]["path"] == "/v1/use/dongda/tumour-tabular-calibrate"
    assert len(result["call"]["inputs"]) == 30
    assert shelf.bundles.resolve(result["name"], None, FACTORY).digest == result["digest"]
    with pytest.raises(Refusal, match="MODEL_NOT_FOUND"):
        shelf.bundles.resolve(result["name"], None, OTHER)
    with reading(engine) as session:
        listing = session.exec(select(Listing).where(Listing.name == result["name"])).one()
        parent = session.exec(select(Listing).where(Listing.name == "acme/tumour")).one()
    assert (listing.visibility, listing.parent_listing_id, listing.relation) == ("private", parent.id, "calibrated")
    assert listing.root_base_listing_id == parent.id
    assert not (shelf.settings.home / "jobs" / job["id"] / "bundle").exists()


async def test_a_retrained_derivative_reuses_no_weights_and_carries_no_base(shelf: Market, engine: Engine) -> None:
    request = {"recipe": "tabular_retrain", "model": "acme/tumour@1", "name": "ours", "params": {"method": "linear"}}
    first = await adapted(shelf, **request)
    assert first["state"] == "done", first["error"]
    second = await adapted(shelf, **request, seed=1)
    assert (first["result"]["version"], second["result"]["version"]) == (1, 2)
    with reading(engine) as session:
        listing = session.exec(select(Listing).where(Listing.name == "dongda/ours")).one()
    assert (listing.relation, listing.root_base_listing_id) == ("retrained", None)


async def test_a_parent_withdrawn_while_the_job_waits_fails_it_clearly(shelf: Market, engine: Engine) -> None:
    adapting = MarketAdapting(shelf, InProcessRunner())
    created = await adapting.create(
        FACTORY, {"recipe": "tabular_calibrate", "model": "acme/tumour", "sample_set_id": "smp_one"}
    )
    with transaction(engine) as session:
        version = session.exec(select(ModelVersion)).one()
        version.state = "withdrawn"
        session.add(version)
    shelf.catalogue_changed()
    job = adapting.worker._claim()
    assert job is not None
    adapting.worker.carry_out(job)
    assert (await adapting.get(FACTORY, created["id"]))["error"]["code"] == "MODEL_NOT_FOUND"
