"""kill -9 under eight clients that log what was acknowledged; `python -m tests.killnine` is the long run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

from tests.killnine.run import kill_nine

SEED = 4  # of its three kills one comes while the market starts again


def test_a_market_that_is_killed_under_load_loses_doubles_and_strands_nothing(tmp_path):
    verdict = kill_nine(tmp_path, kills=3, clients=8, seed=SEED)
    assert verdict.faults == []
    assert verdict.acknowledged_not_posted == 0
    assert verdict.posted_not_acknowledged <= verdict.in_flight_at_kills
    assert verdict.kills_while_starting >= 1
    assert verdict.acknowledged > 100


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
