"""Ingest as a process of its own: killed at any instant it loses nothing and posts nothing twice; told to end it
ingests the rest; it never outlives its market."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import func, select

import serving.leases
from marketplace.db import reading
from marketplace.settings import Settings
from marketplace.usage import supervisor
from marketplace.usage.ingest import Progress
from marketplace.usage.supervisor import IngestChild, gauges, standing
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import NodeEpoch
from tests.marketplace.town import Town

PATIENCE_S = 60
KILLS = 8


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    town.voucher(400_000)
    town.subscribe(900_000)
    return town


@pytest.fixture
def child(town, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_S", 0.01)
    child = IngestChild(Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path / 'market.db'}"))
    yield child
    child.stop()


def posted(town: Town) -> int:
    with reading(town.engine) as session:
        return session.exec(select(func.count()).select_from(Usage)).one()


def test_a_child_killed_at_any_instant_loses_nothing_and_posts_nothing_twice(town, child):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    node = town.node()
    child.start()
    for _ in range(KILLS):
        before = posted(town)
        node.call(count=400)
        assert eventually(lambda before=before: posted(town) > before), "a new child goes on where the last one stopped"
        node.call(count=chance.randrange(200))
        time.sleep(chance.random() * 0.3)
        pid = child.pid
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda pid=pid: child.pid != pid)
    node.call(count=50)
    child.stop()
    acknowledged = [record.usage_id for record in node.acknowledged]
    assert sorted(row.usage_id for row in town.rows(Usage)) == sorted(acknowledged)
    assert all(row.status == "ok" for row in town.rows(Usage))
    assert town.balance("M.recv.ent[org_factory]") == len(acknowledged) * 37 // 100
    assert child.restarts >= KILLS
    town.check()
    node.stop()
    town.check()


def test_told_to_end_the_child_ingests_what_is_written_and_leaves(town, child):
    node = town.node()
    child.start()
    node.call(count=500)
    child.stop()
    assert posted(town) == 500
    assert child.progress.records == 500
    assert not runs(child.pid)
    node.stop()
    assert town.get(NodeEpoch, ("n1", 1)).state == "sealed"
    town.check()


def test_what_a_child_that_is_gone_left_is_ingested_when_the_epoch_closes(town, child, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 600.0)
    monkeypatch.setattr(supervisor, "MAX_BACKOFF_S", 600.0)
    node = town.node()
    child.start()
    assert eventually(lambda: child.alive)
    os.kill(child.pid, signal.SIGKILL)
    assert eventually(lambda: child.restarts == 1)
    node.call(count=300)
    child.stop()
    node.stop()
    assert posted(town) == 300
    town.check()


def test_a_signal_to_the_whole_group_does_not_end_it_before_the_market_has_written_all(town, child):
    node = town.node()
    child.start()
    node.call(count=10)
    assert eventually(lambda: posted(town) == 10)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, number)
    node.call(count=10)
    child.stop()
    assert posted(town) == 20
    assert child.restarts == 0


def test_readiness_and_metrics_tell_how_far_the_ledger_is_behind(town, child):
    node = town.node()
    child.start()
    node.call(count=20)
    assert eventually(lambda: child.progress.records == 20)
    assert eventually(lambda: standing(child, town.folder)["behind_bytes"] == 0)
    told = standing(child, town.folder)
    assert (told["lag_ms"], told["alive"], told["problems"]) == (0, True, 0)
    assert gauges(child, town.folder)["algomart_ingest_records_total"] == 20
    os.kill(child.pid, signal.SIGSTOP)
    try:
        node.call(count=20)
        assert standing(child, town.folder)["behind_bytes"] > 0
        assert eventually(lambda: standing(child, town.folder)["lag_ms"] > 0)
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert eventually(lambda: child.progress.records == 40)


def test_a_child_that_falls_silent_is_replaced(town, child, monkeypatch):
    monkeypatch.setattr(supervisor, "SILENCE_S", 5.0)
    node = town.node()
    child.start()
    node.call(count=5)
    assert eventually(lambda: posted(town) == 5)
    pid = child.pid
    os.kill(pid, signal.SIGSTOP)
    node.call(count=5)
    assert eventually(lambda: posted(town) == 10)
    assert child.pid != pid
    assert not runs(pid)


def test_counts_go_on_over_a_restart(town, child):
    node = town.node()
    child.start()
    node.call(count=7)
    assert eventually(lambda: child.progress.records == 7)
    os.kill(child.pid, signal.SIGKILL)
    node.call(count=3)
    assert eventually(lambda: child.progress.records == 10)


def test_a_child_that_cannot_be_started_is_tried_again(town, child, monkeypatch):
    real, failures = subprocess.Popen, []

    def sometimes(*args, **kwargs):
        if len(failures) < 3:
            failures.append(1)
            raise OSError("no memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(supervisor.subprocess, "Popen", sometimes)
    node = town.node()
    child.start()
    node.call(count=5)
    assert eventually(lambda: posted(town) == 5)
    assert len(failures) == 3


def test_the_child_goes_when_the_market_is_killed(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from marketplace.db import create_tables, open_database\n"
        "from marketplace.settings import Settings\n"
        "from marketplace.usage.supervisor import IngestChild\n"
        "settings = Settings(home=Path(sys.argv[1]))\n"
        "create_tables(open_database(settings.sql_url))\n"
        "child = IngestChild(settings)\n"
        "child.start()\n"
        "while not child.progress.caught_up_at_ms: time.sleep(0.01)\n"
        "print(child.pid, flush=True); time.sleep(600)\n"
    )
    market = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert market.stdout is not None
    pid = int(market.stdout.readline())
    assert runs(pid)
    market.kill()
    market.wait()
    assert eventually(lambda: not runs(pid))


def test_damage_in_a_journal_keeps_the_lag_from_being_called_nothing(tmp_path):
    progress = Progress(offsets={"n1-1.alj": 10}, problems={"n1-1.alj": "crc at byte 10"}, caught_up_at_ms=1_000)
    (tmp_path / "n1-1.alj").write_bytes(b"x" * 30)
    assert progress.behind_bytes(tmp_path) == 20
    assert progress.lag_ms(tmp_path, 5_000) == 4_000
