"""Weights moved out of the models that this node runs, one at a time in a child process, for their next load.

See `model_store.mapped`. Nothing waits for it: a model that is not mapped yet, or never will be, is loaded as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

from model_store.mapped import LEAST_BYTES, is_settled
from serving.ports import ServedVersion
from serving.resident import weights_bytes

_log = logging.getLogger("algomart.mapping")
PATIENCE_S = 120.0  # for one model


class Mapper:
    """Lives on the event loop. A model that failed is not tried again before the next start."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where mapped models are kept; None: nowhere, nothing is ever mapped."""
        self._folder = folder
        self._tried: set[str] = set()
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, served: ServedVersion) -> None:
        """Map a trusted model some time soon, unless it is too small to gain or has been seen to."""
        if self._folder is None or not served.trusted or served.base is not None or served.digest in self._tried:
            return
        self._tried.add(served.digest)
        task = asyncio.create_task(self._map(served, self._folder))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for everything that was wanted so far."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self.settled()

    async def _map(self, served: ServedVersion, folder: Path) -> None:
        try:
            if await asyncio.to_thread(_is_needless, served, folder):
                return
            async with self._one:
                said = await _derive(served, folder)
        except OSError as error:  # a full disk, say: the model runs all the same
            said = str(error)
        if said:
            _log.warning("the weights of %s@%d cannot be mapped: %s", served.name, served.version, said)


def _is_needless(served: ServedVersion, folder: Path) -> bool:
    return is_settled(folder, served.digest) or weights_bytes(served.bundle) < LEAST_BYTES


async def _derive(served: ServedVersion, folder: Path) -> str:
    """What the child said, if it failed. It is killed where this is cancelled, or it takes too long."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "model_store.mapped", str(served.bundle / "model.onnx"), str(folder), served.digest,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    except TimeoutError:
        return f"not done after {PATIENCE_S:.0f} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
    return "" if child.returncode == 0 else said.decode(errors="replace")[-500:]
