"""Adapting for the data plane's port: requests become jobs, jobs become private derivatives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from adapters.jobs import JobRunner, SubprocessRunner
from adapters.recipe import recipe_named, recipes
from adapters.workshop import check_ready
from marketplace.adapting.registration import register_derivative
from marketplace.adapting.request import create_job, read_request
from marketplace.adapting.tables import Job
from marketplace.adapting.worker import JobWorker, Register
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.organisations import audit
from model_store.errors import Conflict, NotFound, Refusal
from serving.ports import Principal, ServedVersion

if TYPE_CHECKING:
    from marketplace.market import Market

Rows = list[dict[str, Any]]  # by another name, because a method of the port is called `list`
ENDED = frozenset({"done", "failed", "cancelled"})
EVENT_POLL_S = 0.3
MAX_LISTED = 200


class MarketAdapting:
    """Implements `serving.ports.Adapting`. Call `start()` once the market is up, `stop()` when it goes down."""

    def __init__(self, market: Market, runner: JobRunner | None = None, register: Register | None = None) -> None:
        """`runner`: subprocesses by default; `register` publishes what a job made (`register_derivative`)."""
        self._market = market
        home = market.settings.home
        self.worker = JobWorker(
            market.engine,
            home,
            runner or SubprocessRunner((home / "jobs").resolve()),
            self._parent_folder,
            register or (lambda job: register_derivative(market, job)),
        )

    def start(self, threads: int = 1) -> None:
        self.worker.start(threads)

    def stop(self) -> None:
        self.worker.stop()

    async def create(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job: {"recipe", "model", "sample_set_id", "name", "label_column", "columns", "params", "seed"}."""
        return await asyncio.to_thread(self._create, principal, request)

    async def get(self, principal: Principal, job_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._get, principal, job_id)

    async def list(self, principal: Principal) -> Rows:
        return await asyncio.to_thread(self._list, principal)

    async def cancel(self, principal: Principal, job_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._cancel, principal, job_id)

    async def events(self, principal: Principal, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """The job as it is now, then each time it has changed, ending with its terminal state."""
        last: tuple[Any, ...] = ()
        while True:
            job = await self.get(principal, job_id)
            now = (job["state"], job["stage"], job["progress"], len(job["history"]))
            if now != last:
                last = now
                yield job
            if job["state"] in ENDED:
                return
            await asyncio.sleep(EVENT_POLL_S)

    def recipe_cards(self) -> Rows:
        """What `GET /v1/recipes` answers."""
        return [recipe.card() for recipe in recipes().values()]

    def _create(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = read_request(request)
        check_ready()
        parent: ServedVersion | None = None
        if wanted.model is not None:
            parent = self._market.bundles.resolve(wanted.model, wanted.selector, principal)
        with transaction(self._market.engine) as session:
            job = create_job(session, principal, wanted, parent)
            audit.record(
                session,
                actor=job.created_by,
                action="job.create",
                subject=job.id,
                organisation_id=job.organisation_id,
                recipe=job.recipe,
                model=job.params["model"],
                name=job.target_name,
            )
        self.worker.wake()
        return job_as_dict(job)

    def _get(self, principal: Principal, job_id: str) -> dict[str, Any]:
        with reading(self._market.engine) as session:
            return job_as_dict(_own(session.get(Job, job_id), principal, job_id))

    def _list(self, principal: Principal) -> Rows:
        mine = select(Job).where(Job.organisation_id == principal.organisation)
        with reading(self._market.engine) as session:
            newest = session.exec(mine.order_by(col(Job.created_at_ms).desc(), col(Job.id).desc()).limit(MAX_LISTED))
            return [job_as_dict(job) for job in newest]

    def _cancel(self, principal: Principal, job_id: str) -> dict[str, Any]:
        with transaction(self._market.engine) as session:
            job = _own(session.get(Job, job_id), principal, job_id)
            if job.state == "registering":
                raise Conflict(
                    "JOB_TOO_LATE",
                    zh="训练已结束, 正在登记派生模型, 无法取消",
                    en="the run is over and its derivative is being registered; it cannot be cancelled any more",
                    remedy_zh="完成后可撤回该版本",
                    remedy_en="withdraw the version when it is done",
                )
            running = job.state == "running"
            if job.state == "queued":
                job.state = job.stage = "cancelled"
                job.updated_at_ms = now_ms()
                session.add(job)
                actor = principal.member or principal.key_id
                audit.record(
                    session, actor=actor, action="job.cancelled", subject=job.id, organisation_id=job.organisation_id
                )
        if running:
            self.worker.cancel(job_id)
        return job_as_dict(job)

    def _parent_folder(self, job: Job) -> Path | None:
        """The parent's bundle as the catalogue serves it now, by the version that the request resolved to."""
        if job.parent_version_id is None:
            return None
        name, _, number = str(job.params["model"]).partition("@")
        return self._market.bundles.resolve(name, number, _owner_of(job)).bundle


def _owner_of(job: Job) -> Principal:
    """The job's organisation as a caller, for looking up what it may see."""
    return Principal(key_id="", organisation=job.organisation_id, role="enterprise", scopes=frozenset({"adapt"}))


def _own(job: Job | None, principal: Principal, job_id: str) -> Job:
    if job is None or job.organisation_id != principal.organisation:
        raise job_not_found(job_id)
    return job


def job_not_found(job_id: str) -> Refusal:
    return NotFound(
        "JOB_NOT_FOUND",
        zh=f"没有任务 {job_id[:60]}",
        en=f"there is no job {job_id[:60]!r}",
        remedy_zh="用 GET /v1/adapt 查看任务列表",
        remedy_en="list yours with GET /v1/adapt",
        field="id",
    )


def job_as_dict(job: Job) -> dict[str, Any]:
    """The wire form of a job."""
    needs = recipe_named(job.recipe).needs
    return {
        "id": job.id,
        "recipe": job.recipe,
        "model": job.params.get("model"),
        "sample_set_id": job.sample_set_id,
        "name": job.target_name,
        "state": job.state,
        "stage": job.stage,
        "progress": job.progress,
        "history": job.history,
        "result": job.result if job.state == "done" else {},
        "error": job.error or None,
        "params": job.params.get("params", {}),
        "estimate": {"minutes": needs.minutes, "memory_mb": needs.memory_mb},
        "compute_ms": job.compute_ms,
        "attempts": job.attempts,
        "created_at_ms": job.created_at_ms,
        "updated_at_ms": job.updated_at_ms,
    }
