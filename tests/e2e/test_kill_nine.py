"""kill -9 under eight clients that log what was acknowledged; `python -m tests.killnine` is the long run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import psutil

from tests.killnine.books import half_published
from tests.killnine.jobs import runner_of, start_job
from tests.killnine.processes import alive, family
from tests.killnine.run import kill_nine
from tests.killnine.town import ok, wait_until
from tests.live import LiveMarket

SEED = 4  # of its three kills one comes while the market starts again


def test_a_market_that_is_killed_under_load_loses_doubles_and_strands_nothing(tmp_path, demo_home):
    shutil.copytree(demo_home, tmp_path / "home", symlinks=True)  # where it would make the demonstration first
    verdict = kill_nine(tmp_path, kills=3, clients=8, seed=SEED)
    assert verdict.faults == []
    assert verdict.acknowledged_not_posted == 0
    assert verdict.posted_not_acknowledged <= verdict.in_flight_at_kills
    assert verdict.kills_while_starting >= 1
    assert verdict.acknowledged > 100


def test_a_job_outlives_a_kill_of_the_market_once_and_is_given_up_after_the_second(tmp_path, demo_home):
    market = LiveMarket(tmp_path / "home", like=demo_home)
    market.start()
    try:
        engineer = market.client("engineer")
        once, twice = (start_job(engineer, name)["id"] for name in ("once", "twice"))
        killed_under(market, once)
        market.wait_ready()
        assert job_ended(market, once)["state"] == "done"
        killed_under(market, twice)
        killed_under(market, twice)
        market.wait_ready()
        given_up = job_ended(market, twice)
        assert (given_up["state"], given_up["error"]["code"]) == ("failed", "JOB_INTERRUPTED")
        assert all(given_up["error"][part] for part in ("message", "message_zh", "remedy", "remedy_zh"))
        engineer = market.client("engineer")
        assert engineer.get("/api/v1/models/demo-factory/twice").status_code == 404
        assert ok(engineer.get("/api/v1/models/demo-factory/once"))["name"] == "demo-factory/once"
        wait_until(lambda: not half_published(market.home), 60, "publications settled")
    finally:
        market.stop()


def killed_under(market: LiveMarket, job: str) -> None:
    """Kill the market while that job trains, and spawn it again: the training of the old market has ended with it.

    The new market is not waited for: it takes the job up before it is ready, and a training of seconds would be over.
    """
    held: list[psutil.Process] = []
    wait_until(lambda: held or hold_runner(market.pid, job, held), 120, "the training runs")
    before = family(market.pid)
    market.kill()
    held[0].resume()  # now it has to notice by itself that its market is gone
    market.spawn()
    wait_until(lambda: not alive(before), 20, "all of the killed market is gone")


def hold_runner(pid: int, job: str, held: list[psutil.Process]) -> bool:
    """Whether that job's training was met; it is held where it is, so that it cannot end before the kill."""
    runner = runner_of(pid, job)
    if runner is not None:
        runner.suspend()
        held.append(runner)
    return bool(held)


def job_ended(market: LiveMarket, job: str) -> dict[str, Any]:
    path, engineer = f"/v1/adapt/{job}", market.client("engineer")
    wait_until(lambda: ok(engineer.get(path))["state"] in ("done", "failed"), 120, "the job ends")
    return dict(ok(engineer.get(path)))


def test_a_registry_whose_market_died_before_it_was_up_ends_itself(tmp_path):
    """Also where orphans are handed to another process than the first one, as under systemd's user sessions."""
    market = (
        "import os, sys; from pathlib import Path; from marketplace.settings import Settings\n"
        "from marketplace.tracking.supervisor import MlflowChild\n"
        "child = MlflowChild(Settings(home=Path(sys.argv[1]))); child._spawn(); print(child.pid, flush=True)\n"
        "os._exit(9)"
    )
    reaper = (
        "import ctypes, subprocess, sys, time; from pathlib import Path\n"
        "ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER\n"
        f"told = subprocess.run([sys.executable, '-c', {market!r}, sys.argv[1]], stdout=subprocess.PIPE).stdout\n"
        "print(told.decode(), flush=True)\n"
        "status, deadline = Path('/proc') / told.decode().strip() / 'status', time.monotonic() + 20\n"
        "while time.monotonic() < deadline and 'zombie' not in status.read_text():\n"
        "    time.sleep(0.1)\n"
        "sys.exit('zombie' not in status.read_text())"
    )
    done = subprocess.run([sys.executable, "-c", reaper, str(tmp_path)], capture_output=True, text=True, check=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0, done.stderr
