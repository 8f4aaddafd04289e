"""`--workers N`: further processes that answer calls on the market's port, started, watched and ended here.

Each has a journal, epochs and leases of its own, like a node elsewhere. One that ends is started again, after what it
has journalled was ingested and its leases were settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from marketplace.db import reading
from marketplace.market import Market
from marketplace.nodes.registry import OWN_NODE
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.vouchers.nodes import open_epochs
from serving.app import ServingApp
from serving.key_counts import KeyCounts
from serving.remote.worker import WorkerOrder, write_order
from serving.settings import ServingSettings
from serving.siblings import ProcessGroup

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 30.0
LONG_ENOUGH_S = 60.0  # a worker that ran this long is not in a crash loop
DRAIN_S = 20.0
_log = logging.getLogger("algomart.workers")


class Workers:
    """The processes beside the first one."""

    def __init__(self, market: Market, count: int) -> None:
        """`count`: processes in all, the first one included."""
        self._market = market
        self.nodes = [OWN_NODE, *(f"{OWN_NODE}-{number}" for number in range(2, count + 1))]
        self._private = [_private_socket() for _ in self.nodes]
        self._urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in self._private]
        self._secret = secrets.token_urlsafe(32)
        self._keys = KeyCounts.shared_memory(count)
        self.counts = KeyCounts(count, 0, self._keys)
        self._stopping = threading.Event()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._spawning = threading.Lock()
        self._threads = [
            threading.Thread(target=self._watch, args=(number,), name=f"worker-{number}", daemon=True)
            for number in range(1, count)
        ]
        self._left: Callable[[int], None] = lambda number: None  # who is told that a process has ended
        self.restarts = 0

    @property
    def own_socket(self) -> socket.socket:
        """Where the first process answers its siblings."""
        return self._private[0]

    def join(self, app: ServingApp) -> None:
        """Make the first process one of them."""
        ProcessGroup(0, self._urls, self.nodes, self._secret, self.stop_gently).join(app)
        app.dataplane.limits.counts = self.counts
        self._left = app.dataplane.orders.left

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self._processes.values() if each.poll() is None]

    def start(self) -> None:
        """Start the threads that start the workers; these wait for the first process to answer."""
        for thread in self._threads:
            thread.start()

    async def stop_gently(self) -> None:
        """End the workers while the first process still grants leases; each answers what it has in hand."""
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """End them, within 20 s or by force, and settle what they leave. Idempotent."""
        with self._spawning:
            self._stopping.set()
            running = list(self._processes.values())
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + DRAIN_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("worker %d does not come to its end and is killed", process.pid)
                process.kill()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _watch(self, number: int) -> None:
        node, backoff = self.nodes[number], FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started, status = time.monotonic(), ""
            try:
                epoch = register_node(self._market.engine, self._market.journals, node)
                with self._spawning:
                    if self._stopping.is_set():
                        process = None
                    else:
                        process = self._processes[number] = self._spawn(number, epoch)
                status = str(process.wait() if process is not None else 0)
                self._left(number)
                self.counts.clear(number)
                close_epoch(self._market.engine, self._market.journals, node, epoch)
            except Exception as error:  # the database is away, or there is no memory: the others go on
                _log.exception("worker %s", node)
                status = type(error).__name__
            if self._stopping.is_set():
                return
            backoff = FIRST_BACKOFF_S if time.monotonic() - started > LONG_ENOUGH_S else min(backoff * 2, MAX_BACKOFF_S)
            _log.warning("worker %s ended with %s; starting it again in %.1f s", node, status, backoff)
            self.restarts += 1
            self._stopping.wait(backoff)

    def _spawn(self, number: int, epoch: int) -> subprocess.Popen[bytes]:
        market, listener = self._market, self._private[number]
        settings = market.settings
        order = WorkerOrder(
            parent=os.getpid(),
            number=number,
            urls=self._urls,
            nodes=self.nodes,
            secret=self._secret,
            token=market.nodes.admit_worker(self.nodes[number]),
            epoch=epoch,
            host=settings.host,
            port=settings.port,
            grpc_port=settings.grpc_port,
            listener=listener.fileno(),
            keys=self._keys,
            journals=str(market.journals),
            bundles=str(settings.home / "bundles"),
            market_url=settings.url,
            log_level=settings.log_level,
            settings=share_of(ServingSettings.of(settings), len(self.nodes)),
        )
        root = str(Path(__file__).resolve().parents[1])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.remote.worker"],
            stdin=subprocess.PIPE,
            env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))},
            pass_fds=[listener.fileno(), self._keys],
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(write_order(order))
            process.stdin.close()
        return process


def share_of(settings: ServingSettings, processes: int) -> ServingSettings:
    """What each of several processes may take of the machine: its share of memory and of the cores."""
    threads = max(1, settings.run_threads // processes) if not settings.threads else settings.threads
    return replace(settings, memory_budget_bytes=settings.memory_budget_bytes // processes, threads=threads)


def close_left_over(market: Market) -> None:
    """Settle what workers of an earlier start left: there may be fewer of them now. Before any is started."""
    with reading(market.engine) as session:
        left = [row for row in open_epochs(session) if row.node.startswith(f"{OWN_NODE}-")]
    for row in left:
        close_epoch(market.engine, market.journals, row.node, row.epoch)


def _private_socket() -> socket.socket:
    """On loopback, for the siblings only; held open here, so that what they send waits while a worker starts again."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.bind(("127.0.0.1", 0))
    bound.listen(2048)
    return bound
