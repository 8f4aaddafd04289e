"""The market under the bench: what `algomart up` starts, with its full shelf, and the tiny model published in it.

Published, inspected, reviewed, listed and priced over the public JSON API; called with the factory's key under a
subscription: key, lease and journal are on, as for any customer.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from model_store.bundle import pack, seal
from model_store.manifest import DataSource, Feature, Label, Manifest, Metric, Target, TensorSpec
from model_store.step_specs import Classify, Columns
from tests.bench import load
from tests.bench.servers import BODIES, BODY, ROOT, START_S, Server
from tests.bench.tiny import CLASSES, FEATURES, write_tiny
from tests.ports import free_port

NAME = "dongzhi/bench-tiny"
FEN_PER_CALL = "0.01"  # less than is usual, so that a long bench stays inside a demonstration contract


def market_server(home: Path, folder: Path, pinned: Sequence[str]) -> tuple[Server, str]:
    """The market's process and its address; `start_market` starts it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    target = load.Target(f"{url}/v2/models/{NAME.replace('/', '--')}/infer", BODY, {})
    command = [*pinned, sys.executable, "-m", "marketplace.cli", "up", "--demo"]
    server = Server(
        "algomart", command, target, folder, PYTHONPATH=str(ROOT), ALGOMART_HOME=str(home), ALGOMART_PORT=str(port),
        ALGOMART_BUILD_MINILM="false",  # a build in the background would be measured too
    )  # fmt: skip
    return server, url


def open_market(home: Path, folder: Path, pinned: Sequence[str], expected: Sequence[float]) -> Server:
    """Start the market, publish the tiny model and subscribe to it, and start it again with its data.

    `start_s` is the second start's, to the first right answer, as a peer's; the first also opens the shelf.
    """
    server, url = market_server(home, folder, pinned)
    server.launch()
    wait_ready(url, server)
    keys = json.loads((home / "demo-keys.json").read_text(encoding="utf-8"))
    publish(url, keys, folder)
    server.target = load.Target(server.target.url, BODY, {"Authorization": f"Bearer {keys['factory']}"}, BODIES)
    server.wait_right(expected)
    server.stop()
    server.start(expected)
    return server


def ingested(server: Server) -> dict[str, Any]:
    """How far the ledger is behind the calls now."""
    url = server.target.url.partition("/v2/")[0]
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())["ingest"]
    return found


def settled(server: Server) -> dict[str, Any]:
    """Wait until every call is in the ledger: seconds that took, records journalled and posted since the start."""
    url = server.target.url.partition("/v2/")[0]
    started = time.monotonic()
    while (found := ingested(server))["behind_bytes"]:
        time.sleep(0.1)
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    journalled = next(float(line.split()[1]) for line in lines if line.startswith("algomart_journal_records_total "))
    return {
        "caught_up_s": round(time.monotonic() - started, 2),
        "journalled": int(journalled),
        "posted": found["records"],
        "quarantined": found["quarantined"],
    }


def wait_ready(url: str, server: Server) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):
                return
        except OSError:
            server.check_alive(deadline)
            time.sleep(0.1)


def publish(url: str, keys: dict[str, str], folder: Path) -> None:
    """Vendor publishes, prices and submits; the operator approves; the factory subscribes."""
    content = listed_bundle(folder / "bench-tiny")
    made = call(url, "POST", "/api/v1/publish", keys["vendor"], form={"name": NAME}, file=content)
    path = f"/api/v1/models/{NAME}"
    call(url, "POST", f"{path}/prices", keys["vendor"], {"fen_per_unit": FEN_PER_CALL})
    submitted = call(url, "POST", f"{path}/versions/{made['version']}/submit", keys["vendor"])
    call(url, "POST", f"/api/v1/reviews/{submitted['review_id']}/approve", keys["operator"])
    terms = {"listing": NAME, "contract_fen": 100_000, "on_voucher_end": "self_pay"}
    call(url, "POST", "/api/v1/subscriptions", keys["factory"], terms)


def listed_bundle(folder: Path) -> bytes:
    """The tiny model as a bundle that passes the public inspection, zipped."""
    golden = folder / "golden" / "0"
    golden.mkdir(parents=True)
    write_tiny(folder / "model.onnx")
    x = np.random.default_rng(3).normal(size=(8, FEATURES)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    np.savez(golden / "inputs.npz", x=x)
    np.savez(golden / "outputs.npz", y=session.run(["y"], {"x": x})[0])
    (folder / "card.md").write_text(
        "---\nlicense: apache-2.0\n---\n# 基准小模型 Tiny bench model\n用于测速。For the bench.\n"
    )
    names = [f"f{index}" for index in range(FEATURES)]
    classes = [f"c{index}" for index in range(CLASSES)]
    manifest = Manifest(
        name=NAME,
        title_zh="基准小模型",
        title_en="Tiny bench model",
        summary_zh="十六个数到三类, 用于测速",
        summary_en="Sixteen numbers to three classes, for the bench",
        task="tabular-classification",
        modality="tabular",
        chains=["新材料"],
        links=["生产制造"],
        scenarios=["参数优化"],
        licence="Apache-2.0",
        family="bench-tiny",
        method="MLP",
        inputs=[TensorSpec(name="x", dtype="FP32", shape=[-1, FEATURES])],
        outputs=[TensorSpec(name="y", dtype="FP32", shape=[-1, CLASSES])],
        features=[
            Feature(name=name, kind="number", title_zh=f"特征{name}", title_en=f"feature {name}", unit="1", example=0.5)
            for name in names
        ],
        target=Target(name="c", kind="category", title_zh="类别", title_en="class"),
        labels=[Label(name=name, title_zh=name, title_en=name) for name in classes],
        pre=[Columns(features=names, tensor="x")],
        post=[Classify(tensor="y", labels=classes)],
        data=[DataSource(title="made up", licence="CC0-1.0", rows=8, use="trained", split_fingerprint="0" * 64)],
        metrics=[Metric(name="accuracy", value=0.9, low=0.8, high=0.95, rows=100)],
    )
    return pack(seal(folder, manifest), folder.with_suffix(".zip")).read_bytes()


def call(
    url: str,
    method: str,
    path: str,
    key: str,
    body: dict[str, Any] | None = None,
    form: dict[str, str] | None = None,
    file: bytes | None = None,
) -> Any:
    """One call of the market's JSON API; fails with its answer."""
    headers = {"Authorization": f"Bearer {key}"}
    content: bytes | None = None
    if file is not None:
        boundary = secrets.token_hex(16)
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
                 for name, value in (form or {}).items()]  # fmt: skip
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="b.zip"\r\n\r\n'
        content = b"".join([*parts, head.encode(), file, f"\r\n--{boundary}--\r\n".encode()])
        headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
    elif body is not None:
        content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url + path, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
