"""The servers that the bench compares: how each is installed, started, called and ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.bench.load import Target, processes
from tests.bench.ray_and_mlflow import as_mlflow, mlflow_command, ray_command, values_of
from tests.bench.tiny import FEATURES
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
CACHE = Path(os.environ.get("ALGOMART_BENCH_CACHE", "~/.cache/algomart-bench")).expanduser()
PACKAGES = {
    "bentoml": "bentoml==1.4.39",
    "litserve": "litserve==0.2.19",
    "mlserver": "mlserver==1.7.1",
    "kserve": "kserve==0.21.0",
    "triton": "nvidia-pytriton==0.7.0",  # its wheel has the server binary and the Python backend
    "ray": "ray[serve]==2.60.0",
    "ray-default": "ray[serve]==2.60.0",  # in the same venv
    "mlflow": "mlflow==3.17.2 onnx==1.23.2",
}
TRITON_CONFIG = """name: "tiny"
backend: "python"
max_batch_size: 32
input [{ name: "x" data_type: TYPE_FP32 dims: [ 16 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 3 ] }]
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching { }
"""
ONNXRUNTIME = "onnxruntime==1.32.0"
START_S = 180.0
DATA = [round(0.1 * (index + 1), 1) for index in range(FEATURES)]


def body_of(data: Sequence[float]) -> bytes:
    document = {"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": list(data)}]}
    return json.dumps(document, separators=(",", ":")).encode()


BODY = body_of(DATA)
_chance = random.Random(20250205)
BODIES = tuple(body_of([round(_chance.uniform(-9, 9), 1 + each % 4) for _ in DATA]) for each in range(64))


class Server:
    """One server in its own process group. `target` is what the load is sent to."""

    def __init__(self, name: str, command: Sequence[str], target: Target, folder: Path, **environment: str) -> None:
        self.name, self.target = name, target
        self._command, self._folder = list(command), folder
        self._environment = {
            **os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "1",
            **environment,
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0

    @property
    def root_pid(self) -> int:
        """The root of its processes; 0 where somebody else started it."""
        return 0 if self._process is None else self._process.pid

    def start(self, expected: Sequence[float]) -> None:
        """Start it and wait for the first right answer; an early end fails with its log."""
        started = time.monotonic()
        self.launch()
        self.wait_right(expected)
        self.start_s = time.monotonic() - started

    def launch(self) -> None:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_right(self, expected: Sequence[float]) -> None:
        deadline = time.monotonic() + START_S
        while not answers_right(self.target, expected):
            self.check_alive(deadline)
            time.sleep(0.1)

    def check_alive(self, deadline: float) -> None:
        """Raise with its log where it has ended, or is late."""
        assert self._process is not None
        if self._process.poll() is not None or time.monotonic() > deadline:
            self.stop()
            raise RuntimeError(f"{self.name} did not start:\n{self._log_path.read_text(errors='replace')[-4000:]}")

    @property
    def _log_path(self) -> Path:
        return self._folder / f"{self.name}.log"

    def stop(self) -> None:
        """SIGTERM to its process group, then SIGKILL; what left the group (as Ray's HAProxy does) is killed too."""
        process = self._process
        if process is None:
            return
        tree = processes(process.pid)
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process = None


def answers_right(target: Target, expected: Sequence[float]) -> bool:
    """One call, compared with in-process ONNX Runtime."""
    headers = {"Content-Type": "application/json", **target.headers}
    request = urllib.request.Request(target.url, target.body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = values_of(json.loads(answer.read()))
    except (urllib.error.URLError, OSError):
        return False
    return len(found) == len(expected) and all(abs(a - b) < 1e-5 for a, b in zip(found, expected, strict=True))


def reference(model: Path, folder: Path, pinned: Sequence[str]) -> Server:
    port = free_port()
    command = [*pinned, sys.executable, "-m", "tests.bench.reference", str(model), str(port)]
    return Server(
        "reference", command, Target(f"http://127.0.0.1:{port}/", BODY, {}, BODIES), folder, PYTHONPATH=str(ROOT)
    )


def bare(model: Path, folder: Path, pinned: Sequence[str]) -> Server:
    """A bare protocol class: the limit that the reference's framework keeps from."""
    port = free_port()
    command = [*pinned, sys.executable, "-m", "tests.bench.bare", str(model), str(port)]
    return Server("bare", command, Target(f"http://127.0.0.1:{port}/", BODY, {}, BODIES), folder, PYTHONPATH=str(ROOT))


def lone_node(folder: Path, pinned: Sequence[str]) -> Server:
    """The data plane by itself over the market in memory: key, lease and journal on."""
    from tests.bench.node import KEY

    port = free_port()
    command = [*pinned, sys.executable, "-m", "tests.bench.node", str(folder / "node"), str(port)]
    target = Target(
        f"http://127.0.0.1:{port}/v2/models/benchlab--tiny-mlp/infer", BODY, {"Authorization": f"Bearer {KEY}"}, BODIES
    )
    return Server("node", command, target, folder, PYTHONPATH=str(ROOT))


def peer(name: str, model: Path, folder: Path, pinned: Sequence[str]) -> Server:
    """A peer in its own venv, installed from PyPI when it is not there yet."""
    binaries = install(name)
    port = free_port()
    home = folder / name
    home.mkdir()
    environment = {"BENCH_MODEL": str(model), "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(home)}
    path, body, bodies = "infer", BODY, BODIES
    if name == "bentoml":
        shutil.copy(PEERS / "bentoml_service.py", home)
        command = [f"{binaries}/bentoml", "serve", "bentoml_service:Tiny", "--host", "127.0.0.1", "--port", str(port),
                   "--working-dir", str(home)]  # fmt: skip
    elif name == "litserve":
        path = "predict"
        command = [f"{binaries}/python", str(PEERS / "litserve_server.py"), str(model), str(port)]
    elif name == "kserve":
        path = "v2/models/tiny/infer"
        command = [f"{binaries}/python", str(PEERS / "kserve_server.py"), str(model), str(port),
                   "--configure_logging", "False"]  # fmt: skip
    elif name == "triton":
        path = "v2/models/tiny/infer"
        command, more = _triton(binaries, home, port)
        environment |= more
    elif name in ("ray", "ray-default"):
        path = ""
        command, more = ray_command(name, binaries, model, home, port)
        environment |= more
    elif name == "mlflow":
        path, body, bodies = "invocations", as_mlflow(BODY), tuple(as_mlflow(each) for each in BODIES)
        command, more = mlflow_command(binaries, model, home, port)
        environment |= more
    else:
        path = "v2/models/tiny/infer"
        shutil.copy(PEERS / "mlserver_runtime.py", home)
        settings = {
            "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_endpoint": None,
            "metrics_port": free_port(), "parallel_workers": 0, "gzip_enabled": False, "debug": False,
            "use_structured_logging": False, "logging_settings": _quiet_logging(),
        }  # fmt: skip
        (home / "settings.json").write_text(json.dumps(settings))
        model_settings = {"name": "tiny", "implementation": "mlserver_runtime.TinyRuntime"}
        (home / "model-settings.json").write_text(json.dumps(model_settings))
        command = [f"{binaries}/mlserver", "start", str(home)]
    target = Target(f"http://127.0.0.1:{port}/{path}", body, {}, bodies)
    return Server(name, [*pinned, *command], target, folder, **environment)


def _triton(binaries: Path, home: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The wheel's `tritonserver` with the Python backend, whose stub runs Debian's python3.11."""
    packages = next((binaries.parent / "lib").glob("python*/site-packages"))
    server = packages / "pytriton" / "tritonserver"
    backends, repository = home / "backends", home / "repository"
    shutil.copytree(server / "backends", backends)
    shutil.copy(server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backends / "python")
    (repository / "tiny" / "1").mkdir(parents=True)
    shutil.copy(PEERS / "triton_model.py", repository / "tiny" / "1" / "model.py")
    (repository / "tiny" / "config.pbtxt").write_text(TRITON_CONFIG)
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}",
               f"--backend-directory={backends}", "--http-port", str(port), "--allow-grpc=false",
               "--allow-metrics=false", "--http-thread-count=2"]  # fmt: skip
    more = {"BENCH_PACKAGES": str(packages), "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "PATH": f"/usr/bin:{os.environ['PATH']}", "PYTHONPATH": ""}  # fmt: skip
    return command, more


def install(name: str) -> Path:
    """The venv of a peer, made once under ~/.cache/algomart-bench. Answers its bin folder."""
    folder = CACHE / name.partition("-")[0]
    if not (folder / ".installed").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [
            f"{folder}/bin/pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            *PACKAGES[name].split(),
            ONNXRUNTIME,
        ]
        subprocess.run(pip, check=True)
        (folder / ".installed").write_text(PACKAGES[name])
    return folder / "bin"


def _quiet_logging() -> dict[str, object]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"out": {"class": "logging.StreamHandler"}},
        "root": {"level": "WARNING", "handlers": ["out"]},
        "loggers": {
            "mlserver": {"level": "WARNING"},
            "uvicorn": {"level": "WARNING"},
            "uvicorn.access": {"level": "CRITICAL"},
        },
    }
