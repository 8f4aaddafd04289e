"""Weights moved out of the models that this node runs, one at a time in a child process, for their next load.

See `model_store.mapped`. Nothing waits for it: a model that is not mapped yet, or never will be, is loaded as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import select
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from model_store.mapped import LEAST_BYTES, is_settled
from serving.ports import ServedVersion
from serving.resident import weights_bytes

_log = logging.getLogger("algomart.mapping")
PATIENCE_S = 120.0  # for one model
END_S = 1.0  # from the end of what it says to its own


class Mapper:
    """Lives on the event loop. A model that failed is not tried again before the next start."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where mapped models are kept; None: nowhere, nothing is ever mapped."""
        self._folder = folder
        self._tried: set[str] = set()
        self._wanted: deque[ServedVersion] = deque()
        self._task: asyncio.Task[None] | None = None

    def want(self, served: ServedVersion) -> None:
        """Map a trusted model some time soon, unless it is too small to gain or has been seen to."""
        if self._folder is None or not served.trusted or served.base is not None or served.digest in self._tried:
            return
        self._tried.add(served.digest)
        self._wanted.append(served)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._map_all(self._folder))

    async def settled(self) -> None:
        """Wait for everything that was wanted so far."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self.settled()

    async def _map_all(self, folder: Path) -> None:
        """What is wanted, in turn, by one child; it ends when no more is."""
        while self._wanted:
            child = _Child()
            try:
                while self._wanted:
                    await self._map_one(child, self._wanted.popleft(), folder)
            finally:
                child.kill()
                await asyncio.to_thread(child.end)

    async def _map_one(self, child: _Child, served: ServedVersion, folder: Path) -> None:
        try:
            said = await asyncio.to_thread(_map, child, served, folder)
        except OSError as error:  # a full disk, say: the model runs all the same
            said = str(error)
        if said:
            _log.warning("the weights of %s@%d cannot be mapped: %s", served.name, served.version, said)


def _map(child: _Child, served: ServedVersion, folder: Path) -> str:
    """Blocking. Answers what went wrong."""
    if is_settled(folder, served.digest) or weights_bytes(served.bundle) < LEAST_BYTES:
        return ""
    return child.map(served.bundle / "model.onnx", folder, served.digest)


class _Child:
    """`python -m model_store.mapped`, started by the first order. All but `kill` blocks.

    Never started on the event loop: uvloop would fork there, and copying the page tables of a node that holds many
    models takes 15 ms in which nobody is answered.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one = threading.Lock()
        self._killed = False

    def map(self, model: Path, folder: Path, digest: str) -> str:
        """What went wrong, or nothing. A child that ends, or takes too long, is replaced for the next model."""
        order = json.dumps({"model": str(model), "folder": str(folder), "digest": digest}).encode() + b"\n"
        with self._one:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "model_store.mapped"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                )  # fmt: skip
            if self._killed:  # while it was started
                self._process.kill()
            answer = _ask(self._process, order)
            if answer is None:
                self._end()
                return f"not done after {PATIENCE_S:.0f} s"
            if not answer.endswith(b"\n"):
                return f"its process ended with {self._end(END_S)}"
        return str(json.loads(answer)["said"])

    def kill(self) -> None:
        """Whoever waits for it is answered at once. Does not block."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        with self._one:
            if self._process is not None:
                self._end()

    def _end(self, patience_s: float = 0.0) -> int:
        """Kill it where it does not end by itself, wait for that, and answer its status."""
        process, self._process = self._process, None
        assert process is not None, "only a child that was started ends"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        process.kill()
        with process:  # waits for it, and closes its pipes
            return process.wait()


def _ask(process: subprocess.Popen[bytes], order: bytes) -> bytes | None:
    """The line that answers, as much of it as was said before it ended; None where it is late."""
    assert process.stdin is not None
    assert process.stdout is not None
    late, poll, line = time.monotonic() + PATIENCE_S, select.poll(), b""
    poll.register(process.stdout, select.POLLIN)
    try:
        process.stdin.write(order)
    except BrokenPipeError:
        return line
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, late - time.monotonic()) * 1000):
            return None
        piece = process.stdout.read(4096)
        if not piece:
            break
        line += piece
    return line
