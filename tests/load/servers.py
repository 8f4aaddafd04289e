"""The node under load, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

START_S = 60.0


@dataclass(frozen=True)
class LoadNode:
    port: int
    pid: int


@contextmanager
def load_node(folder: Path, *, niceness: int | None = None, core: int | None = None) -> Iterator[LoadNode]:
    """Started and ready; ended by SIGTERM, which it has to follow. `niceness`: of its runs, other than the default;
    `core`: the one it has for itself, from the start on."""
    port = free_port()
    own = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})  # inherited
    options = [] if niceness is None else [str(niceness)]
    process = subprocess.Popen([sys.executable, "-m", "tests.load.node", str(folder), str(port), *options])
    os.sched_setaffinity(0, own)
    try:
        _wait(process, port)
        yield LoadNode(port, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)  # uvicorn ends by the signal it was given


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the node ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise TimeoutError("the node did not become ready")
