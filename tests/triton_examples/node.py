"""`algomart serve` over the example models: no key asked, Triton's words, HTTP and gRPC on free ports of loopback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.triton_examples.models import MODELS, write_models

START_S = 60.0
STOP_S = 30.0


class Node:
    """A lone node in a process of its own; `log` is what it wrote, once it has ended."""

    def __init__(self, folder: Path, models: int = len(MODELS)) -> None:
        """`folder` is empty or absent; the first `models` example models are written into it."""
        self.folder, self.log = folder, ""
        write_models(folder / "models", models)
        self.port, self.grpc_port = free_port(), free_port()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready; an early end fails with what it wrote."""
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        self._process = serve(
            self.folder / "models", self.folder / "home", *ports, "--trusted", "--no-key", "--triton-compat"
        )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"the node did not start:\n{self._process.communicate()[0]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self.log, _ = self._process.communicate(timeout=STOP_S)

    def _is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/v2/health/ready"
            return httpx.get(url, trust_env=False, timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def serve(models: Path, home: Path, *options: str) -> subprocess.Popen[str]:
    """`algomart serve` in a process of its own, output and errors in one pipe."""
    command = [sys.executable, "-m", "marketplace.cli", "serve", str(models), "--home", str(home), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
