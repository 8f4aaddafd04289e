"""The market's side of the limited subprocesses: a few are kept warm, each tries one bundle at a time."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

import model_store
from model_store.inspection.limits import Limits

MAX_CHILDREN = max(2, min(8, os.cpu_count() or 2))
RECYCLE_AFTER = 1000  # inspections; a child forks for each, so it hardly grows
START_S = 60.0
GRACE_S = 10.0
MAX_ANSWER_BYTES = 20 << 20
_KINDS = {"stage", "findings", "facts", "golden", "cost", "scorecard", "broken", "end"}


class ChildFailed(Exception):
    """The subprocess itself (not the bundle) could not be started or stopped answering."""


@dataclass(slots=True)
class Answer:
    """What a trial said before it ended, and how it ended. `said` maps kind to the last value of that kind."""

    isolated: bool
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> dict[str, Any]:
        value = self.said.get("end")
        return value if isinstance(value, dict) else {}


class Child:
    """One subprocess and the pipes to it. Used by one thread at a time."""

    def __init__(self) -> None:
        root = str(Path(model_store.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "model_store.inspection.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(root),
            start_new_session=True,
        )
        self.tried = 0
        self._buffer = b""
        hello = self._read_line(time.monotonic() + START_S)
        if not isinstance(hello, dict) or not hello.get("ready"):
            self.close()
            raise ChildFailed("the inspection subprocess did not start")
        self.isolated = bool(hello.get("isolated"))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def try_bundle(self, request: dict[str, Any], limits: Limits, on_stage: Callable[[str], None]) -> Answer:
        """Send one request and collect what comes until its end. Raises `ChildFailed`."""
        assert self._process.stdin is not None
        self.tried += 1
        answer = Answer(self.isolated)
        end = time.monotonic() + limits.wall_s + GRACE_S
        try:
            self._process.stdin.write(orjson.dumps(request) + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ChildFailed("the inspection subprocess is gone") from error
        while "end" not in answer.said:
            message = self._read_line(end)
            if not isinstance(message, list) or len(message) != 2 or message[0] not in _KINDS:
                continue
            answer.said[message[0]] = message[1]
            if message[0] == "stage":
                on_stage(str(message[1])[:32])
        return answer

    def _read_line(self, end: float) -> Any:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(descriptor, 1 << 16) if ready else b""
            if not chunk or len(self._buffer) > MAX_ANSWER_BYTES:
                raise ChildFailed("the inspection subprocess stopped answering")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ChildFailed("the inspection subprocess sent something else than JSON") from error

    def close(self) -> None:
        """End the subprocess; its forks end with it."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()


def _environment(root: str) -> dict[str, str]:
    """Nothing of the market's environment (settings, tokens, proxies) but what finding the interpreter's files
    takes.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ") if name in os.environ}
    return kept | {
        "PYTHONPATH": root,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": "/nonexistent",
    }


class ChildPool:
    """Children that wait for work, and the bound on how many may work at once. Safe for threads."""

    def __init__(self, most: int = MAX_CHILDREN) -> None:
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._places = threading.BoundedSemaphore(most)

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Child]:
        """A live child, returned to the pool unless it failed or is due to be recycled. Raises `ChildFailed`."""
        with self._places:
            child = self._take() or Child()
            try:
                yield child
            except BaseException:
                child.close()
                raise
            if child.tried >= RECYCLE_AFTER or not child.alive:
                child.close()
            else:
                with self._lock:
                    self._idle.append(child)

    def _take(self) -> Child | None:
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or child.alive:
                return child
            child.close()  # it went to sleep for good after its idle time

    def try_bundle(self, request: dict[str, Any], limits: Limits, on_stage: Callable[[str], None]) -> Answer:
        """Try a bundle; once more with a fresh child where the first one turns out to be gone. Raises `ChildFailed`."""
        try:
            with self.borrow() as child:
                fresh = child.tried == 0
                return child.try_bundle(request, limits, on_stage)
        except ChildFailed:
            if fresh:
                raise
        with self.borrow() as child:
            return child.try_bundle(request, limits, on_stage)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def forget(self) -> None:
        """After a fork the children belong to the other process."""
        self._lock = threading.Lock()
        self._idle = []
        self._places = threading.BoundedSemaphore(MAX_CHILDREN)


POOL = ChildPool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.forget)
