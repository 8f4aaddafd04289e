"""One contract for every job runner, and what only the limited subprocess promises."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from adapters.jobs import InProcessRunner, JobLimits, JobProgress, JobRunner, JobSpec, SubprocessRunner
from model_store.bundle import open_bundle


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A small real table: the iris measurements and species."""
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True)
    frame = iris.frame.copy()
    frame["species"] = np.array(iris.target_names)[frame.pop("target")]
    (tmp_path / "samples").mkdir()
    frame.to_parquet(tmp_path / "samples" / "table.parquet")
    return tmp_path / "samples"


@pytest.fixture(params=["in process", "subprocess"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> JobRunner:
    return InProcessRunner() if request.param == "in process" else SubprocessRunner(tmp_path / "jobs")


def spec_of(samples: Path, tmp_path: Path, **changes: object) -> JobSpec:
    plain: dict[str, object] = {
        "recipe": "tabular_retrain", "data": str(samples), "out": str(tmp_path / "jobs" / "one" / "bundle"),
        "name": "factory/iris", "label_column": "species", "params": {"method": "linear"}, "seed": 3,
    }  # fmt: skip
    return JobSpec(**{**plain, **changes})  # type: ignore[arg-type]


def test_a_run_reports_progress_and_ends_in_a_verified_bundle(runner: JobRunner, samples: Path, tmp_path: Path) -> None:
    said: list[JobProgress] = []
    result = runner.run("one", spec_of(samples, tmp_path), said.append)
    assert result.state == "done", (result.error, result.log_tail)
    assert [report.progress for report in said] == sorted(report.progress for report in said)
    assert said[-1].progress == 1.0
    assert open_bundle(Path(result.outcome["bundle"]), verify=True).manifest.name == "factory/iris"
    assert result.compute_ms > 0


def test_a_refusal_inside_a_run_comes_back_with_its_code_field_and_remedy(
    runner: JobRunner, samples: Path, tmp_path: Path
) -> None:
    result = runner.run("one", spec_of(samples, tmp_path, label_column="weight"), lambda _: None)
    assert (result.state, result.error["code"]) == ("failed", "COLUMN_MISSING")
    assert result.error["remedy_zh"]


def test_a_cancelled_run_ends_cancelled(runner: JobRunner, samples: Path, tmp_path: Path) -> None:
    stopped: list[bool] = []
    result = runner.run("one", spec_of(samples, tmp_path), lambda _: stopped.append(runner.cancel("one")))
    assert result.state == "cancelled"
    assert stopped[0] is True


def test_cancelling_what_does_not_run_says_so(runner: JobRunner) -> None:
    assert runner.cancel("nothing") is False


def test_the_same_seed_gives_the_same_digest(samples: Path, tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        result = InProcessRunner().run("one", spec_of(samples, tmp_path), lambda _: None)
        digests.append(open_bundle(Path(result.outcome["bundle"])).digest)
    assert digests[0] == digests[1]


def test_a_run_past_its_time_is_stopped_and_says_so(samples: Path, tmp_path: Path) -> None:
    spec = spec_of(samples, tmp_path, limits=JobLimits(timeout_s=0.05))
    result = SubprocessRunner(tmp_path / "jobs").run("one", spec, lambda _: None)
    assert (result.state, result.error["code"]) == ("failed", "JOB_TIMEOUT")


def test_a_run_over_its_memory_fails_alone(samples: Path, tmp_path: Path) -> None:
    spec = spec_of(samples, tmp_path, limits=JobLimits(memory_bytes=-(1 << 30) + (40 << 20)))  # 40 MB in all
    result = SubprocessRunner(tmp_path / "jobs").run("one", spec, lambda _: None)
    assert result.state == "failed"
    assert result.error["code"] in ("JOB_OUT_OF_MEMORY", "JOB_KILLED", "JOB_FAILED")


def test_a_file_over_its_bound_is_refused(samples: Path, tmp_path: Path) -> None:
    spec = spec_of(samples, tmp_path, limits=JobLimits(file_bytes=64))
    result = SubprocessRunner(tmp_path / "jobs").run("one", spec, lambda _: None)
    assert result.state == "failed"


def test_the_child_gets_none_of_the_markets_settings_or_keys(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALGOMART_SECRET", "hidden")
    runner = SubprocessRunner(tmp_path / "jobs")
    seen: list[str] = []

    def look(_: JobProgress) -> None:
        (child,) = runner._running.values()
        seen.append(Path(f"/proc/{child.process.pid}/environ").read_text())

    assert runner.run("one", spec_of(samples, tmp_path), look).state == "done"
    assert "OMP_NUM_THREADS=1" in seen[0]
    assert "hidden" not in seen[0]


def test_the_child_ends_itself_when_the_market_is_gone(samples: Path, tmp_path: Path) -> None:
    runner = SubprocessRunner(tmp_path / "jobs")

    def abandon(_: JobProgress) -> None:
        (child,) = runner._running.values()
        assert child.process.stdin is not None
        child.process.stdin.close()  # what the death of the market's process does
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)

    result = runner.run("one", spec_of(samples, tmp_path), abandon)
    assert (result.state, result.error["code"]) == ("failed", "JOB_KILLED")


def test_two_jobs_run_side_by_side_and_only_the_one_named_is_cancelled(samples: Path, tmp_path: Path) -> None:
    runner = SubprocessRunner(tmp_path / "jobs")
    results: dict[str, str] = {}

    def carry_out(job_id: str, on_progress: object) -> None:
        spec = spec_of(samples, tmp_path, out=str(tmp_path / "jobs" / job_id / "bundle"))
        results[job_id] = runner.run(job_id, spec, on_progress).state  # type: ignore[arg-type]

    threads = [
        threading.Thread(target=carry_out, args=("stays", lambda _: None)),
        threading.Thread(target=carry_out, args=("goes", lambda _: runner.cancel("goes"))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"stays": "done", "goes": "cancelled"}


def test_a_spec_survives_json() -> None:
    spec = JobSpec(
        recipe="quantise", data="/a", out="/b", name="v/n", params={"kind": "auto"}, limits=JobLimits(cpu_s=5)
    )
    assert JobSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
