"""Running a recipe apart from the market: the port `JobRunner`, its subprocess runner and its in-process twin.

`SubprocessRunner` starts `python -m adapters.run_job <spec.json>` in its own process group (so that a cancel reaches
every descendant), niced, under limits, without a network where `unshare -rn` works. The child says how far it is as
JSON lines on stdout; stderr goes to `job.log`, of which the tail is kept. The child holds the read end of a pipe on
stdin: when the market dies, even by kill -9, the pipe closes and the child ends itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from adapters.workshop import PACKAGES, not_ready
from model_store.errors import Refusal

LOG_TAIL_BYTES = 8_192
MAX_LINE_BYTES = 1 << 20
BASE_MEMORY_BYTES = 1 << 30  # what Python, torch and their thread stacks take before a recipe allocates anything


@dataclass(frozen=True, slots=True)
class JobLimits:
    memory_bytes: int = 4 << 30  # RLIMIT_DATA: private writable memory
    cpu_s: int = 1_800
    file_bytes: int = 1 << 30
    timeout_s: float = 1_800.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One run as plain data: what `run_job` needs to build a `recipe.Context`. Paths are absolute."""

    recipe: str
    data: str
    out: str
    name: str
    parent: str | None = None
    parent_version: int = 0
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    label_column: str | None = None
    limits: JobLimits = field(default_factory=JobLimits)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> JobSpec:
        return JobSpec(**{**plain, "limits": JobLimits(**plain.get("limits", {}))})


@dataclass(frozen=True, slots=True)
class JobProgress:
    progress: float  # 0..1
    stage: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a run ended. `outcome` is `recipe.Outcome.as_dict()`, `error` a refusal's `as_dict()`."""

    state: Literal["done", "failed", "cancelled"]
    outcome: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    compute_ms: int = 0  # CPU time used, user and system
    log_tail: str = ""
    isolated: bool = False  # no network


class JobRunner(Protocol):
    def run(self, job_id: str, spec: JobSpec, on_progress: Callable[[JobProgress], None]) -> JobResult:
        """Run to the end, in the calling thread. Never raises for what the recipe did: that is the result's `error`."""

    def cancel(self, job_id: str) -> bool:
        """Stop a run, from any thread; False if no such run is under way. Its `run` then returns state cancelled."""


class JobCancelled(Exception):
    """Raised inside an in-process run to leave it."""


def error_of(code: str, zh: str, en: str, remedy_zh: str = "", remedy_en: str = "") -> dict[str, Any]:
    """An error in the shape of `Refusal.as_dict()`."""
    return Refusal(code, zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en).as_dict()


def error_from(exception: BaseException) -> dict[str, Any]:
    """What a failed run says: a refusal as it is, memory as such, anything else as a fault of ours with its text."""
    if isinstance(exception, Refusal):
        return exception.as_dict()
    if isinstance(exception, MemoryError) or "can't allocate memory" in str(exception):
        return error_of(
            "JOB_OUT_OF_MEMORY",
            zh="任务超出内存上限",
            en="the job went over its memory limit",
            remedy_zh="请减少样本行数或批大小",
            remedy_en="use fewer rows or a smaller batch",
        )
    if isinstance(exception, ModuleNotFoundError) and (exception.name or "").partition(".")[0] in PACKAGES:
        return not_ready([PACKAGES[str(exception.name).partition(".")[0]]]).as_dict()
    text = f"{type(exception).__name__}: {exception}"[:500]
    return error_of(
        "JOB_FAILED",
        zh=f"任务内部出错: {text}",
        en=f"the job failed inside: {text}",
        remedy_zh="请检查样本数据; 若仍失败, 请将任务编号发给平台运营方",
        remedy_en="check the samples; if it fails again, send the job's id to the operator",
    )


@cache
def network_can_be_cut() -> bool:
    """Whether this machine lets us start a process in an empty network namespace."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    ended_by: str = ""  # cancel | timeout | line

    def kill(self, why: str) -> None:
        self.ended_by = self.ended_by or why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class SubprocessRunner:
    """Runs each job in a child of its own. `folder` holds one folder per job: spec.json, job.log, bundle."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self._folder = folder
        self._python = python
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def run(self, job_id: str, spec: JobSpec, on_progress: Callable[[JobProgress], None]) -> JobResult:
        folder = self._folder / job_id
        folder.mkdir(parents=True, exist_ok=True)
        spec_path, log_path = folder / "spec.json", folder / "job.log"
        spec_path.write_text(json.dumps(spec.as_dict(), ensure_ascii=False))
        isolated = network_can_be_cut()
        command = [*(("unshare", "-rn") if isolated else ()), self._python, "-m", "adapters.run_job", str(spec_path)]
        with log_path.open("wb") as log:
            running = self._start(job_id, command, log, folder)
            timer = threading.Timer(spec.limits.timeout_s, running.kill, ("timeout",))
            timer.daemon = True
            timer.start()
            try:
                final = _follow(running, on_progress)
            except BaseException:
                running.kill("cancel")
                raise
            finally:
                timer.cancel()
                compute_ms, status = _reap(running.process)
                with self._lock:
                    del self._running[job_id]
        return _judge(running.ended_by, final, status, compute_ms, _tail(log_path), isolated)

    def cancel(self, job_id: str) -> bool:
        with self._lock:
            running = self._running.get(job_id)
        if running is None:
            return False
        running.kill("cancel")
        return True

    def _start(self, job_id: str, command: list[str], log: Any, folder: Path) -> _Running:
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "TMPDIR")  # no keys, tokens or settings of the market
        environment = {key: value for key, value in os.environ.items() if key in kept}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
        root = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH", ""))))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env={**environment, **threads, **offline, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
        )
        running = _Running(process)
        with self._lock:
            self._running[job_id] = running
        return running


def _follow(running: _Running, on_progress: Callable[[JobProgress], None]) -> dict[str, Any]:
    """Read the child's lines until it closes stdout; returns the last line's result or error, {} if there was none."""
    final: dict[str, Any] = {}
    assert running.process.stdout is not None
    while line := running.process.stdout.readline(MAX_LINE_BYTES):
        try:
            said = json.loads(line)
        except ValueError:
            running.kill("line")
            break
        if "progress" in said:
            on_progress(JobProgress(float(said["progress"]), str(said["stage"]), said.get("metrics", {})))
        else:
            final = said
    return final


def _reap(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for the child: (CPU milliseconds of it and what it reaped, exit status as Popen gives it)."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return int((usage.ru_utime + usage.ru_stime) * 1000), process.returncode


def _judge(
    ended_by: str, final: Mapping[str, Any], status: int, compute_ms: int, tail: str, isolated: bool
) -> JobResult:
    """How the run ended, from what stopped it, what it said last and how it exited."""
    if ended_by == "cancel":
        return JobResult("cancelled", compute_ms=compute_ms, log_tail=tail, isolated=isolated)
    if ended_by == "timeout" or status == -signal.SIGXCPU:
        error = error_of(
            "JOB_TIMEOUT",
            zh="任务超过时间上限, 已终止",
            en="the job ran past its time limit and was stopped",
            remedy_zh="请减少样本行数、轮数或序列长度",
            remedy_en="use fewer rows, fewer epochs or a shorter length",
        )
    elif "error" in final:
        error = final["error"]
    elif status == 0 and "result" in final:
        return JobResult("done", final["result"], compute_ms=compute_ms, log_tail=tail, isolated=isolated)
    elif "MemoryError" in tail or "cannot allocate memory" in tail.lower() or "bad_alloc" in tail:
        error = error_from(MemoryError())
    else:
        error = error_of(
            "JOB_KILLED",
            zh=f"任务进程意外终止 (退出状态 {status})",
            en=f"the job's process ended unexpectedly (exit status {status})",
            remedy_zh="请重新提交; 若再次出现, 请减少样本行数",
            remedy_en="submit it again; if that repeats, use fewer rows",
        )
    return JobResult("failed", error=error, compute_ms=compute_ms, log_tail=tail, isolated=isolated)


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return log.read().decode("utf-8", "replace")


class InProcessRunner:
    """The twin for tests and notebooks: the same recipes in the calling thread. No limits; a cancel takes effect at the
    next report."""

    def __init__(self) -> None:
        self._cancelled: dict[str, threading.Event] = {}

    def run(self, job_id: str, spec: JobSpec, on_progress: Callable[[JobProgress], None]) -> JobResult:
        from adapters.run_job import perform

        stop = self._cancelled[job_id] = threading.Event()

        def report(progress: float, stage: str, **metrics: float) -> None:
            on_progress(JobProgress(progress, stage, metrics))
            if stop.is_set():
                raise JobCancelled

        started = time.thread_time()
        try:
            outcome = perform(spec, report)
        except JobCancelled:
            return JobResult("cancelled", compute_ms=int((time.thread_time() - started) * 1000))
        except Exception as exception:
            error = error_from(exception)
            return JobResult("failed", error=error, compute_ms=int((time.thread_time() - started) * 1000))
        finally:
            del self._cancelled[job_id]
        if stop.is_set():
            return JobResult("cancelled", compute_ms=int((time.thread_time() - started) * 1000))
        return JobResult("done", outcome.as_dict(), compute_ms=int((time.thread_time() - started) * 1000))

    def cancel(self, job_id: str) -> bool:
        stop = self._cancelled.get(job_id)
        if stop is not None:
            stop.set()
        return stop is not None
