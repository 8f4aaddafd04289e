"""The worker that carries queued jobs out: claim → run in the runner → register the derivative → done.

Every step is a row's state, so that a restart can tell where a job stood: `running` starts over once, `registering`
is finished from the outcome kept in the row. Nothing here runs on the event loop.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from adapters.jobs import JobLimits, JobProgress, JobResult, JobRunner, JobSpec, error_from, error_of
from adapters.recipe import recipe_named
from marketplace.adapting.request import samples_gone
from marketplace.adapting.tables import Job
from marketplace.choosing.tables import SampleSet
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.organisations import audit, notices

MAX_ATTEMPTS = 2
MAX_HISTORY = 400
WRITE_INTERVAL_S = 0.25
TIME_FACTOR = 10.0  # a job may take this many times what its recipe foresees before it is stopped
MIN_TIMEOUT_S = 300.0
IDLE_WAIT_S = 5.0

Register = Callable[[Job], dict[str, Any]]
ParentFolder = Callable[[Job], Path | None]
_log = logging.getLogger(__name__)


class JobWorker:
    """`threads` jobs at a time, oldest first."""

    def __init__(
        self, engine: Engine, home: Path, runner: JobRunner, parent_folder: ParentFolder, register: Register
    ) -> None:
        """`parent_folder(job)` finds the parent's bundle; `register(job)` publishes `job.result` and describes it."""
        self._engine = engine
        self._home = home
        self._runner = runner
        self._parent_folder = parent_folder
        self._register = register
        self._wake = threading.Condition()
        self._stopping = False
        self._cancelling: set[str] = set()
        self._running: set[str] = set()
        self._threads: list[threading.Thread] = []

    def start(self, threads: int = 1) -> None:
        """Recover what a crash left, then begin."""
        with transaction(self._engine) as session:
            recover(session)
        for index in range(threads):
            thread = threading.Thread(target=self._loop, name=f"adapting-{index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End running children and threads; their jobs start over at the next start."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for job_id in list(self._running):
            self._runner.cancel(job_id)
        for thread in self._threads:
            thread.join(timeout=10)

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    def cancel(self, job_id: str) -> None:
        """Stop a running job, also one that the runner has only just been given."""
        self._cancelling.add(job_id)
        self._runner.cancel(job_id)

    def _loop(self) -> None:
        while not self._stopping:
            try:
                job = self._claim()
                if job is not None:
                    self.carry_out(job)
                    continue
            except Exception:
                _log.exception("adapting: a job could not be carried out")
                time.sleep(1)  # a database that is away must not be hammered
            with self._wake:
                if not self._stopping:
                    self._wake.wait(IDLE_WAIT_S)

    def _claim(self) -> Job | None:
        """The next job: one to register before one to run, the oldest first."""
        with transaction(self._engine) as session:
            order = (col(Job.state).desc(), col(Job.created_at_ms), col(Job.id))  # "registering" > "queued"
            waiting = select(Job).where(col(Job.state).in_(("queued", "registering"))).order_by(*order)
            for job in session.exec(waiting):
                if job.id in self._running:
                    continue
                if job.state == "queued":
                    job.state, job.stage, job.progress = "running", "starting", 0.0
                    job.attempts += 1
                job.updated_at_ms = now_ms()
                session.add(job)
                self._running.add(job.id)
                return job
        return None

    def carry_out(self, job: Job) -> None:
        """One claimed job to its end (or, when the market stops, back to the queue)."""
        try:
            if job.state == "running":
                result = self._run(job)
                if self._stopping and result.state == "cancelled" and job.id not in self._cancelling:
                    self._write(job.id, state="queued", stage="queued", attempts=job.attempts - 1)
                    return
                self._finish_run(job, result)
            if job.state == "registering":
                self._finish_registration(job)
        finally:
            self._running.discard(job.id)
            self._cancelling.discard(job.id)

    def _run(self, job: Job) -> JobResult:
        try:
            spec = self._spec_of(job)
        except Exception as exception:
            return JobResult("failed", error=error_from(exception))
        history: list[dict[str, Any]] = []
        written: tuple[float, str] = (0.0, "")  # when, and at which stage, the row was last written

        def on_progress(said: JobProgress) -> None:
            nonlocal written
            if job.id in self._cancelling:
                self._runner.cancel(job.id)
            if said.metrics:
                history.append({"progress": round(said.progress, 4), "stage": said.stage, **said.metrics})
            moment = time.monotonic()
            if said.stage != written[1] or moment - written[0] >= WRITE_INTERVAL_S:
                written = (moment, said.stage)
                self._write(job.id, stage=said.stage, progress=min(1.0, said.progress), history=thin(history))

        result = self._runner.run(job.id, spec, on_progress)
        job.history = thin(history)
        if job.id in self._cancelling:  # also when the run ended just before it could be stopped
            return JobResult("cancelled", compute_ms=result.compute_ms)
        return result

    def _spec_of(self, job: Job) -> JobSpec:
        recipe = recipe_named(job.recipe)
        with reading(self._engine) as session:
            samples = session.get(SampleSet, job.sample_set_id)
        if samples is None or samples.deleted_at_ms is not None or samples.expires_at_ms <= now_ms():
            raise samples_gone(job.sample_set_id or "")
        parent = self._parent_folder(job)
        seconds = max(MIN_TIMEOUT_S, recipe.needs.minutes * 60 * TIME_FACTOR)
        return JobSpec(
            recipe=job.recipe,
            data=str((self._home / "samples" / samples.id).resolve()),
            out=str((self._home / "jobs" / job.id / "bundle").resolve()),
            name=job.target_name,
            parent=str(parent.resolve()) if parent else None,
            parent_version=int(job.params.get("parent_version", 0)),
            params=job.params.get("params", {}),
            seed=int(job.params.get("seed", 0)),
            columns=job.params.get("columns", {}),
            label_column=job.params.get("label_column"),
            limits=JobLimits(memory_bytes=recipe.needs.memory_mb << 20, cpu_s=int(seconds * 2), timeout_s=seconds),
        )

    def _finish_run(self, job: Job, result: JobResult) -> None:
        job.compute_ms += result.compute_ms
        job.state = {"done": "registering", "failed": "failed", "cancelled": "cancelled"}[result.state]
        job.stage = job.state
        job.result, job.error = dict(result.outcome), dict(result.error)
        facts = {"compute_ms": job.compute_ms, "history": job.history, "result": job.result, "error": job.error}
        self._write(job.id, state=job.state, stage=job.stage, **facts)
        if result.state == "failed":
            _log.info("adapting: job %s failed: %s\n%s", job.id, job.error.get("code"), result.log_tail)

    def _finish_registration(self, job: Job) -> None:
        try:
            result = self._register(job)
        except Exception as exception:
            error = error_from(exception)
            _log.info("adapting: job %s could not be registered: %s", job.id, error["code"], exc_info=True)
            self._write(job.id, state="failed", stage="failed", error=error)
        else:
            self._write(job.id, state="done", stage="done", progress=1.0, result=result)
        # Only now: a crash before this line registers again from the folder. The log stays.
        shutil.rmtree(self._home / "jobs" / job.id / "bundle", ignore_errors=True)

    def _write(self, job_id: str, **changes: Any) -> None:
        """Set columns of the row. A terminal state is audited and told to the organisation in the same transaction."""
        with transaction(self._engine) as session:
            row = session.get_one(Job, job_id)
            for name, value in changes.items():
                setattr(row, name, value)
            row.updated_at_ms = now_ms()
            session.add(row)
            if changes.get("state") in ("done", "failed", "cancelled"):
                _tell(session, row)


def recover(session: Session) -> None:
    """After a restart: a running job goes back to the queue, unless it was already tried as often as it may be."""
    for job in session.exec(select(Job).where(Job.state == "running")):
        job.updated_at_ms = now_ms()
        if job.attempts < MAX_ATTEMPTS:
            job.state, job.stage, job.progress, job.history = "queued", "queued", 0.0, []
        else:
            job.state = job.stage = "failed"
            job.error = error_of(
                "JOB_INTERRUPTED",
                zh=f"任务在运行中被中断 {job.attempts} 次, 不再重试",
                en=f"the job was interrupted {job.attempts} times while running and is not tried again",
                remedy_zh="请重新提交; 若机器内存不足, 请减少样本行数",
                remedy_en="submit it again; if the machine is short of memory, use fewer rows",
            )
            _tell(session, job)
        session.add(job)


def thin(history: list[dict[str, Any]], limit: int = MAX_HISTORY) -> list[dict[str, Any]]:
    """At most `limit` points of a curve, evenly taken, the last one always among them."""
    if len(history) <= limit:
        return list(history)
    step = (len(history) - 1) / (limit - 1)
    return [history[round(index * step)] for index in range(limit)]


def _tell(session: Session, job: Job) -> None:
    audit.record(
        session,
        actor="system",
        action=f"job.{job.state}",
        subject=job.id,
        organisation_id=job.organisation_id,
        recipe=job.recipe,
        name=job.target_name,
        compute_ms=job.compute_ms,
        code=job.error.get("code", ""),
    )
    if job.state == "cancelled":
        return
    done = job.state == "done"
    zh = f"{job.target_name} 已完成适配, 可以调用" if done else f"适配任务失败: {job.error.get('message_zh', '')}"
    en = f"{job.target_name} is adapted and can be called" if done else f"adaptation: {job.error.get('message', '')}"
    notices.notify(session, job.organisation_id, f"JOB_{job.state.upper()}", zh=zh, en=en, link=f"/adapt/{job.id}")
