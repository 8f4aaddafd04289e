"""`algomart serve` over a folder with a base and its adapters: real processes, the base install, HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from model_store.bundle import pack
from serving.journal import UsageEntry, read_segment
from tests.e2e.test_serve import RUN, ready
from tests.model_store.adapted import adapter, adapter_bundle, answer, base_bundle, rows
from tests.ports import free_port

COUNT = 5


@pytest.fixture(params=["reviewed", "unreviewed"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, str, Path]]:
    """The adapters' files come before their base's by name; one is a zip. Unreviewed: all in limited workers."""
    shelf, home, port = tmp_path / "shelf", tmp_path / "home", free_port()
    base = base_bundle(shelf / "z-base", indexed=True)
    for seed in range(COUNT):
        made = adapter_bundle(shelf / f"a{seed}", base, adapter(seed, rank=1 + seed), f"vendor/a{seed}")
        if seed == 0:
            pack(made, shelf / "b0.zip")
            for file in made.path.iterdir():
                file.unlink()
            made.path.rmdir()
    stray = base_bundle(tmp_path / "elsewhere", indexed=True, seed=9)
    adapter_bundle(shelf / "stray", stray, adapter(0), "vendor/stray")
    command = [sys.executable, "-c", RUN, "serve", str(shelf), "--home", str(home), "--port", str(port)]
    if request.param == "reviewed":
        command.append("--trusted")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        ready(client, process)
    key = json.loads((home / "node-key.json").read_text(encoding="utf-8"))["key"]
    yield port, key, home
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert "ADAPTER_BASE_MISSING" in said, "who has no base here is left out, and said"


def test_every_adapter_answers_as_itself_to_the_real_client_all_at_once(node: tuple[int, str, Path]) -> None:
    port, key, home = node

    def call(turn: int) -> None:
        seed, x = turn % (COUNT + 1), rows(1 + turn % 2, seed=turn)
        name = "vendor--base" if seed == COUNT else f"vendor--a{seed}"
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        tensor = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        found = client.infer(name, [tensor], headers={"Authorization": f"Bearer {key}"}).as_numpy("y")
        tensors = None if seed == COUNT else adapter(seed, rank=1 + seed)
        assert np.abs(found - answer(x, tensors)).max() < 1e-5, name
        client.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(60)))
    (segment,) = (home / "journal").iterdir()
    used = {
        (entry.usage.model, entry.usage.adapter)
        for entry in read_segment(segment).entries
        if isinstance(entry, UsageEntry)
    }
    assert used == {(f"vendor/a{seed}@1", f"vendor/a{seed}@1") for seed in range(COUNT)} | {("vendor/base@1", "")}
