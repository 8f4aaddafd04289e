"""The access log: one JSON line a request, written in batches by a thread of its own, off unless it is given a file.

Answering never waits for it: past `MAX_WAITING` lines that are not written yet, lines are dropped and counted. A file
that was moved away (logrotate) is opened anew with the next batch. Never a key, a query or content.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import msgspec

_log = logging.getLogger("algomart.access")
MAX_WAITING = 50_000
PAUSE_S = 0.1
STANDARD_OUTPUT = "-"


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """One request. `at_ms`: Unix milliseconds at its end; `model`, `rows` and milliseconds of its runs together."""

    at_ms: int
    method: str
    path: str
    status: int
    total_ms: float
    request_id: str = ""
    key_id: str = ""
    organisation: str = ""
    usage_id: str = ""
    model: str = ""
    rows: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    code: str = ""  # of a refusal
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class Runs:
    """What ran for one request: of several runs the first model, and all their rows and milliseconds."""

    model: str = ""
    rows: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0


RUNS: ContextVar[Runs | None] = ContextVar("algomart_runs", default=None)  # of the request in hand, where it is logged


def note_run(model: str, rows: int, queue_ms: float, compute_ms: float) -> None:
    """A run has ended for the request in hand."""
    runs = RUNS.get()
    if runs is not None:
        runs.model = runs.model or model
        runs.rows += rows
        runs.queue_ms += queue_ms
        runs.compute_ms += compute_ms


class AccessLog:
    """Appends to `target` (a path, or "-": standard output). `add` from any thread; `close` writes what waits."""

    def __init__(self, target: str) -> None:
        """Raises OSError where the file cannot be opened."""
        self._path = None if target == STANDARD_OUTPUT else Path(target)
        self._waiting: deque[Line] = deque()
        self._file = sys.stdout.fileno() if self._path is None else self._open()
        self._stop = threading.Event()
        self._encoder = msgspec.json.Encoder()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()
        self.dropped = 0

    def add(self, line: Line) -> None:
        if len(self._waiting) >= MAX_WAITING or self._stop.is_set():
            self.dropped += 1
        else:
            self._waiting.append(line)

    def close(self) -> None:
        """Write what waits, and end the thread. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self._path is not None:
            os.close(self._file)

    def _open(self) -> int:
        assert self._path is not None
        return os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self._write()
        self._write()

    def _write(self) -> None:
        waiting = self._waiting
        lines = [waiting.popleft() for _ in range(len(waiting))]
        if not lines:
            return
        try:
            self._reopen_if_moved()
            left = memoryview(self._encoder.encode_lines(lines))
            while left:  # a disk that is nearly full, or a pipe, takes part of it
                left = left[os.write(self._file, left) :]
        except OSError as error:
            self.dropped += len(lines)
            _log.error("the access log cannot be written: %s", error)

    def _reopen_if_moved(self) -> None:
        if self._path is None:
            return
        own = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (own.st_ino, own.st_dev):
            opened = self._open()
            os.close(self._file)
            self._file = opened


def now_ms() -> int:
    return time.time_ns() // 1_000_000
