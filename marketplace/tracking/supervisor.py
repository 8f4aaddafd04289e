"""Runs MLflow's server as a child on a private address with a private token, and starts it again when it dies."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from marketplace.settings import Settings
from model_store.errors import Unavailable

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 30.0
LONG_ENOUGH_S = 60.0  # a child that ran this long is not in a crash loop
_log = logging.getLogger(__name__)


class MlflowChild:
    """`start()` returns at once; `wait_ready()` blocks (2 s; 8 s the first time, while MLflow makes its tables)."""

    def __init__(self, settings: Settings) -> None:
        home = settings.home.resolve()
        self._home = home
        self._backend = settings.mlflow_backend_uri or f"sqlite:///{home / 'mlflow.db'}"
        self._token = secrets.token_urlsafe(32)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._spawning = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id now; None before the first start."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def artifact_folder(self) -> Path:
        """Where the child keeps artifacts: on this machine, so that a store may link files into it."""
        return self._home / "mlflow-artifacts"

    @property
    def headers(self) -> dict[str, str]:
        """What the child wants to see from us."""
        return {"X-AlgoMart-Registry-Token": self._token}

    def start(self) -> None:
        """Start the thread that spawns the child and watches it.

        The child dies with the thread that spawned it (Linux ties its parent-death signal to the thread), so this is
        the one that lives as long as the supervisor.
        """
        self._thread = threading.Thread(target=self._watch, name="mlflow-supervisor", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the child answers now."""
        try:
            return httpx.get(f"{self.base_url}/health", headers=self.headers, timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        """Block until it answers; `Unavailable` REGISTRY_UNAVAILABLE after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() > deadline or self._stopping.is_set():
                raise Unavailable(
                    "REGISTRY_UNAVAILABLE",
                    zh="模型登记服务 (MLflow) 未能启动",
                    en="the model registry (MLflow) did not start",
                    remedy_zh=f"请查看 {self._home / 'logs' / 'mlflow.log'}",
                    remedy_en=f"see {self._home / 'logs' / 'mlflow.log'}",
                    retry_after_s=10,
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """End the child; kill it if it does not go in five seconds."""
        with self._spawning:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _spawn(self) -> subprocess.Popen[bytes]:
        logs = self._home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "marketplace.tracking.child"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), cwd=self._home,
            )  # fmt: skip
        return self._process

    def _environment(self) -> dict[str, str]:
        """MLflow reads these at import; nothing of the market's own settings (keys, database) is passed on."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALGOMART_", "MLFLOW_"))}
        root = str(Path(__file__).resolve().parents[2])
        return kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")])),
            "ALGOMART_REGISTRY_TOKEN": self._token,
            "ALGOMART_REGISTRY_PORT": str(self._port),
            "ALGOMART_REGISTRY_PARENT": str(os.getpid()),
            "_MLFLOW_SERVER_FILE_STORE": self._backend,
            "_MLFLOW_SERVER_REGISTRY_STORE": self._backend,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.artifact_folder),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "OMP_NUM_THREADS": "1",
        }

    def _watch(self) -> None:
        backoff = FIRST_BACKOFF_S
        while True:
            with self._spawning:
                if self._stopping.is_set():
                    return
                process = self._spawn()
            started = time.monotonic()
            process.wait()
            if self._stopping.is_set():
                return
            backoff = FIRST_BACKOFF_S if time.monotonic() - started > LONG_ENOUGH_S else min(backoff * 2, MAX_BACKOFF_S)
            # Said only when it is done: a child that a shutdown's own signal ended is not started again.
            if self._stopping.wait(backoff):
                return
            _log.warning("mlflow ended with %s; starting it again in %.1f s", process.returncode, backoff)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
