"""The MLflow server as a child: found on the second start, started again when killed, gone when its parent is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from marketplace.settings import Settings
from marketplace.tracking.supervisor import MlflowChild
from model_store.errors import Unavailable

PATIENCE_S = 60


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def child(tmp_path: Path):
    child = MlflowChild(Settings(home=tmp_path))
    child.start()
    yield child
    child.stop()


def test_a_killed_child_is_started_again_with_its_data(child: MlflowChild, tmp_path: Path) -> None:
    child.wait_ready()
    first = child.pid
    create = httpx.post(
        f"{child.base_url}/api/2.0/mlflow/experiments/create", json={"name": "kept"}, headers=child.headers
    )
    assert create.is_success
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: child.pid != first and child.ready())
    found = httpx.get(
        f"{child.base_url}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": "kept"},
        headers=child.headers,
    )
    assert found.json()["experiment"]["experiment_id"] == create.json()["experiment_id"]
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_stopped_child_is_gone_and_stays_gone(child: MlflowChild) -> None:
    child.wait_ready()
    pid = child.pid
    child.stop()
    assert not runs(pid)
    assert not child.ready()
    with pytest.raises(Unavailable) as refusal:
        child.wait_ready()
    assert refusal.value.code == "REGISTRY_UNAVAILABLE"


def test_stopping_before_it_is_up_leaves_nothing(tmp_path: Path) -> None:
    child = MlflowChild(Settings(home=tmp_path))
    child.start()
    child.stop()
    assert not runs(child.pid)


def test_the_child_goes_when_the_market_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from marketplace.settings import Settings\n"
        "from marketplace.tracking.supervisor import MlflowChild\n"
        "child = MlflowChild(Settings(home=Path(sys.argv[1])))\n"
        "child.start(); child.wait_ready(); print(child.pid, flush=True); time.sleep(600)\n"
    )
    market = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert market.stdout is not None
    pid = int(market.stdout.readline())
    assert runs(pid)
    market.kill()
    market.wait()
    assert eventually(lambda: not runs(pid))
