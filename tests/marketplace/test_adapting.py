"""Adapting: what becomes a job, what becomes of it, and what a restart makes of what a crash left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlmodel import select

from adapters.jobs import InProcessRunner, JobProgress, JobResult, JobSpec
from marketplace.adapting.service import MarketAdapting
from marketplace.adapting.tables import Job
from marketplace.adapting.worker import MAX_ATTEMPTS, recover, thin
from marketplace.choosing.tables import SampleSet
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations.tables import AuditEvent, Notice
from model_store.bundle import open_bundle
from model_store.errors import Refusal
from serving.ports import Principal
from tests.marketplace.shelf import add_listing, add_organisation

FACTORY = Principal(key_id="key_f", organisation="org_dongda", role="enterprise", scopes=frozenset({"adapt"}))
OTHER = Principal(key_id="key_o", organisation="org_other", role="enterprise", scopes=frozenset({"adapt"}))
REQUEST = {"recipe": "tabular_retrain", "sample_set_id": "smp_iris", "params": {"method": "linear"}}


def registered(job: Job) -> dict[str, Any]:
    """Registration as far as it needs no catalogue: the bundle is opened and verified."""
    bundle = open_bundle(Path(job.result["bundle"]), verify=True)
    return {**job.result, "name": bundle.manifest.name, "version": 1}


@pytest.fixture
def samples(market: Market, engine: Engine) -> None:
    """Two enterprises, one of which has uploaded the iris measurements."""
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True)
    frame = iris.frame.copy()
    frame["species"] = np.array(iris.target_names)[frame.pop("target")]
    folder = market.settings.home / "samples" / "smp_iris"
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "table.parquet")
    with transaction(engine) as session:
        add_organisation(session, "dongda", kind="enterprise")
        add_organisation(session, "other", kind="enterprise")
        add_samples(session, "smp_iris")


def add_samples(session: Any, sample_set_id: str, **facts: Any) -> None:
    plain = {
        "id": sample_set_id, "organisation_id": "org_dongda", "kind": "table", "filename": "iris.csv", "rows": 150,
        "label_column": "species", "sha256": "0" * 64, "expires_at_ms": now_ms() + 3_600_000,
    }  # fmt: skip
    session.add(SampleSet(**{**plain, **facts}))


@pytest.fixture
def adapting(market: Market, samples: None) -> MarketAdapting:
    return MarketAdapting(market, InProcessRunner(), registered)


def carry_out_all(adapting: MarketAdapting) -> None:
    """What the worker's thread does, in this one."""
    while (job := adapting.worker._claim()) is not None:
        adapting.worker.carry_out(job)


class OnFirstReport(InProcessRunner):
    """The real in-process runner, with something done at the first report of a run."""

    def __init__(self, act: Callable[[str], None]) -> None:
        super().__init__()
        self._act: Callable[[str], None] | None = act

    def run(self, job_id: str, spec: JobSpec, on_progress: Callable[[JobProgress], None]) -> JobResult:
        def watched(said: JobProgress) -> None:
            act, self._act = self._act, None
            if act is not None:
                act(job_id)
            on_progress(said)

        return super().run(job_id, spec, watched)


async def test_a_request_becomes_a_job_and_the_job_a_private_derivative(adapting: MarketAdapting) -> None:
    created = await adapting.create(FACTORY, REQUEST)
    assert (created["state"], created["name"]) == ("queued", "dongda/tabular-retrain")
    carry_out_all(adapting)
    job = await adapting.get(FACTORY, created["id"])
    assert (job["state"], job["progress"], job["error"]) == ("done", 1.0, None)
    assert job["result"]["name"] == "dongda/tabular-retrain"
    assert {metric["name"] for metric in job["result"]["metrics"]} >= {"accuracy", "macro_f1"}
    assert job["compute_ms"] > 0
    assert job["attempts"] == 1


async def test_the_end_of_a_job_is_audited_and_told(adapting: MarketAdapting, engine: Engine) -> None:
    await adapting.create(FACTORY, REQUEST)
    carry_out_all(adapting)
    with reading(engine) as session:
        assert [event.action for event in session.exec(select(AuditEvent))] == ["job.create", "job.done"]
        assert session.exec(select(Notice)).one().code == "JOB_DONE"


async def test_a_running_worker_takes_a_job_by_itself_and_events_follow_it_to_its_end(adapting: MarketAdapting) -> None:
    adapting.start()
    try:
        created = await adapting.create(FACTORY, REQUEST)
        states = [job["state"] async for job in adapting.events(FACTORY, created["id"])]
    finally:
        adapting.stop()
    assert states[-1] == "done"


async def test_a_failure_keeps_its_bilingual_refusal(adapting: MarketAdapting) -> None:
    created = await adapting.create(FACTORY, {**REQUEST, "label_column": "weight"})
    carry_out_all(adapting)
    job = await adapting.get(FACTORY, created["id"])
    assert job["state"] == "failed"
    assert job["error"]["code"] == "COLUMN_MISSING"
    assert job["error"]["message_zh"]
    assert job["result"] == {}


async def test_another_organisation_sees_neither_the_job_nor_the_samples(adapting: MarketAdapting) -> None:
    created = await adapting.create(FACTORY, REQUEST)
    for refused in (adapting.get(OTHER, created["id"]), adapting.cancel(OTHER, created["id"])):
        with pytest.raises(Refusal, match="JOB_NOT_FOUND"):
            await refused
    with pytest.raises(Refusal, match="SAMPLE_SET_NOT_FOUND"):
        await adapting.create(OTHER, REQUEST)
    assert await adapting.list(OTHER) == []
    assert [job["id"] for job in await adapting.list(FACTORY)] == [created["id"]]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"recipe": "alchemy"}, "RECIPE_NOT_FOUND", "recipe"),
        ({"recipe": None}, "REQUEST_INVALID", "recipe"),
        ({"colour": "red"}, "REQUEST_INVALID", "colour"),
        ({"params": {"iterations": 10**9}}, "PARAMETER_INVALID", "params.iterations"),
        ({"params": "x"}, "REQUEST_INVALID", "params"),
        ({"columns": {"a": 1}}, "REQUEST_INVALID", "columns"),
        ({"seed": -1}, "REQUEST_INVALID", "seed"),
        ({"model": "nobody/nothing"}, "MODEL_NOT_FOUND", "model"),
        ({"recipe": "tabular_calibrate", "params": {}}, "PARENT_NEEDED", "model"),
        ({"recipe": "image_head", "params": {}}, "PARENT_NEEDED", "model"),
        ({"name": "vendor/mine"}, "NAME_NOT_YOURS", "name"),
        ({"name": "Bad Name"}, "NAME_INVALID", "name"),
        ({"sample_set_id": "smp_none"}, "SAMPLE_SET_NOT_FOUND", "sample_set_id"),
        ({"sample_set_id": "smp_old"}, "SAMPLE_SET_NOT_FOUND", "sample_set_id"),
        ({"sample_set_id": "smp_small"}, "SAMPLES_TOO_FEW", "sample_set_id"),
        ({"sample_set_id": "smp_images"}, "SAMPLES_WRONG_KIND", "sample_set_id"),
        ({"name": "dongda/public"}, "NAME_TAKEN", "name"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_before_anything_is_queued(
    adapting: MarketAdapting, engine: Engine, changes: dict[str, Any], code: str, field: str
) -> None:
    with transaction(engine) as session:
        add_samples(session, "smp_old", expires_at_ms=now_ms() - 1)
        add_samples(session, "smp_small", rows=5)
        add_samples(session, "smp_images", kind="images")
        add_listing(session, "dongda/public")
    with pytest.raises(Refusal) as refused:
        await adapting.create(FACTORY, {**REQUEST, **changes})
    assert (refused.value.code, refused.value.field) == (code, field)
    assert await adapting.list(FACTORY) == []


async def test_an_organisation_cannot_fill_the_queue(adapting: MarketAdapting) -> None:
    for _ in range(10):
        await adapting.create(FACTORY, REQUEST)
    with pytest.raises(Refusal) as refused:
        await adapting.create(FACTORY, REQUEST)
    assert refused.value.code == "JOB_QUEUE_FULL"
    assert refused.value.retry_after_s


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(adapting: MarketAdapting) -> None:
    created = await adapting.create(FACTORY, REQUEST)
    assert (await adapting.cancel(FACTORY, created["id"]))["state"] == "cancelled"
    carry_out_all(adapting)
    assert (await adapting.get(FACTORY, created["id"]))["attempts"] == 0


async def test_a_running_job_is_cancelled(market: Market, samples: None) -> None:
    adapting = MarketAdapting(market, OnFirstReport(lambda job_id: adapting.worker.cancel(job_id)), registered)
    created = await adapting.create(FACTORY, REQUEST)
    carry_out_all(adapting)
    job = await adapting.get(FACTORY, created["id"])
    assert (job["state"], job["result"]) == ("cancelled", {})


async def test_samples_deleted_while_a_job_waits_fail_it_clearly(adapting: MarketAdapting, engine: Engine) -> None:
    created = await adapting.create(FACTORY, REQUEST)
    with transaction(engine) as session:
        row = session.get_one(SampleSet, "smp_iris")
        row.deleted_at_ms = now_ms()
        session.add(row)
    carry_out_all(adapting)
    assert (await adapting.get(FACTORY, created["id"]))["error"]["code"] == "SAMPLE_SET_NOT_FOUND"


async def test_stopping_the_market_puts_a_running_job_back(market: Market, samples: None) -> None:
    def stop(_: str) -> None:
        threading.Thread(target=adapting.stop).start()
        while not adapting.worker._stopping:
            pass

    adapting = MarketAdapting(market, OnFirstReport(stop), registered)
    created = await adapting.create(FACTORY, REQUEST)
    adapting.start()
    for thread in adapting.worker._threads:
        thread.join()
    job = await adapting.get(FACTORY, created["id"])
    assert job["state"] in ("queued", "done")  # done where the run outran the stop
    again = MarketAdapting(market, InProcessRunner(), registered)
    carry_out_all(again)
    assert (await again.get(FACTORY, created["id"]))["state"] == "done"


async def test_a_job_that_a_crash_interrupted_runs_once_more_and_then_fails(
    adapting: MarketAdapting, engine: Engine
) -> None:
    created = await adapting.create(FACTORY, REQUEST)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        job = adapting.worker._claim()  # … and the market dies here
        assert job is not None
        assert job.attempts == attempt
        adapting.worker._running.clear()
        with transaction(engine) as session:
            recover(session)
    job = await adapting.get(FACTORY, created["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "JOB_INTERRUPTED")


async def test_a_crash_while_registering_is_finished_after_the_restart(market: Market, samples: None) -> None:
    def crash(_: Job) -> dict[str, Any]:
        raise KeyboardInterrupt

    adapting = MarketAdapting(market, InProcessRunner(), crash)
    created = await adapting.create(FACTORY, REQUEST)
    with pytest.raises(KeyboardInterrupt):
        carry_out_all(adapting)
    assert (await adapting.get(FACTORY, created["id"]))["state"] == "registering"
    with pytest.raises(Refusal, match="JOB_TOO_LATE"):
        await adapting.cancel(FACTORY, created["id"])
    again = MarketAdapting(market, InProcessRunner(), registered)
    carry_out_all(again)
    job = await again.get(FACTORY, created["id"])
    assert (job["state"], job["attempts"]) == ("done", 1)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    curve = [{"loss": float(place)} for place in range(5_000)]
    thinned = thin(curve)
    assert len(thinned) == 400
    assert (thinned[0], thinned[-1]) == (curve[0], curve[-1])


def test_cards_of_every_recipe_are_shown(adapting: MarketAdapting) -> None:
    cards = {card["name"]: card for card in adapting.recipe_cards()}
    assert cards["text_lora"]["relation"] == "finetune"
    assert cards["text_lora"]["parameters"][0]["title_zh"]
