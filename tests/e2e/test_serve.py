"""`algomart serve`: a lone node over bundles, which needs no market and none of its libraries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from marketplace.starter import FOLDER
from serving.journal import read_segment
from tests.ports import free_port

MODEL = "dongzhi/plant-load-boosting"
ROW = {"inputs": {"AT": 14.96, "V": 41.76, "AP": 1024.07, "RH": 73.17}}
BLOCKED = ("fastapi", "sqlmodel", "sqlalchemy", "mlflow", "torch", "jinja2", "alembic", "pandas")
# As on a machine with the base install only: what the market needs cannot be imported.
RUN = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from marketplace.cli import main
main()
"""


def start(folder: Path, home: Path, port: int, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, "serve", str(folder), "--home", str(home), "--port", str(port)]
    environment = os.environ | {f"ALGOMART_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ready(client: httpx.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.get("/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[httpx.Client, Path]]:
    shelf, home, port = tmp_path / "shelf", tmp_path / "home", free_port()
    shelf.mkdir()
    for name in ("dongzhi--plant-load-boosting.zip", "lingnan--plant-load-linear.zip"):
        (shelf / name).symlink_to(FOLDER / name)
    (shelf / "broken.zip").write_bytes(b"not a zip")
    process = start(shelf, home, port, access_log=str(tmp_path / "access.log"), max_body_bytes="2000")
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
    ready(client, process)
    key = json.loads((home / "node-key.json").read_text(encoding="utf-8"))["key"]
    client.headers["Authorization"] = f"Bearer {key}"
    yield client, home
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def test_a_lone_node_answers_on_the_base_install_and_writes_its_journal(node) -> None:
    client, home = node
    answer = client.post(f"/v1/use/{MODEL}", json=ROW)
    assert answer.status_code == 200, answer.text
    assert 400 < answer.json()["result"]["value"] < 520
    assert answer.json()["charge"]["amount_micro"] == 0
    assert (home / "node-key.json").stat().st_mode & 0o777 == 0o600
    (segment,) = (home / "journal").iterdir()
    assert answer.json()["usage_id"] in str(list(read_segment(segment).entries))


def test_without_its_key_nobody_is_answered_and_choosing_is_elsewhere(node) -> None:
    client, _ = node
    assert httpx.post(client.base_url.join(f"/v1/use/{MODEL}"), json=ROW, trust_env=False).status_code == 401
    refused = client.post("/v1/choose", json={})
    assert refused.status_code in (403, 501)


def test_a_lone_node_takes_its_settings_from_the_environment_too(node, tmp_path: Path) -> None:
    client, _ = node
    assert client.post(f"/v1/use/{MODEL}", json=ROW, headers={"X-Request-Id": "small"}).status_code == 200
    large = client.post(f"/v1/use/{MODEL}", json=ROW | {"more": "x" * 2000})
    assert large.json()["error"]["code"] == "BODY_TOO_LARGE"
    deadline = time.monotonic() + 60
    while not ((log := tmp_path / "access.log").exists() and "small" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_folder_without_bundles_is_refused_with_the_remedy(tmp_path: Path) -> None:
    process = start(tmp_path, tmp_path / "home", free_port())
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "NO_BUNDLES" in said


def test_being_ready_waits_for_nothing_that_only_a_first_model_or_another_market_needs() -> None:
    script = (
        "import sys, marketplace.cli, marketplace.cli_serve, serving.node, serving.server\n"
        "heavy = ('onnx', 'httpx', 'grpc', 'sqlalchemy', 'pydantic_settings', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
