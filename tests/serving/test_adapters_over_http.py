"""Forty adapters of five organisations on one base, over HTTP at once: exact, apart, counted, evicted, loaded again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.adapter_file import with_adapter_inside
from model_store.runtime import Graph, load_graph
from serving.memory_admission import Purse
from serving.ports import Principal, ServedVersion
from tests.model_store.adapted import FIRST, SECOND, adapter, adapter_bundle, base_bundle, rows
from tests.serving.test_http import Served, serve

ADAPTERS = 40
ORGANISATIONS = 5
Array = np.ndarray[Any, Any]


class Floor:
    """The node, who may call it, and each adapter merged into a session of its own."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.base = served, base_bundle(folder / "base", indexed=True)
        bundles, admission = served.node.bundles, served.node.admission
        self.base_version: ServedVersion = bundles.add(self.base.path)
        self.client = httpx.Client(base_url=served.url, trust_env=False, timeout=30)
        self.merged: list[Graph] = []
        self.versions: list[ServedVersion] = []
        for place in range(ORGANISATIONS):
            principal = Principal(f"key_f{place}", f"org_f{place}", "enterprise", frozenset({"use"}))
            admission.keys[self.key(place)] = principal
            admission.purses[principal.organisation] = Purse(10**9, 10**9, 10**6)
        for seed in range(ADAPTERS):
            tensors = adapter(seed, rank=1 + seed % 7, sites=(FIRST,) if seed % 3 == 2 else (FIRST, SECOND))
            made = adapter_bundle(folder / f"a{seed}", self.base, tensors, f"f{seed % ORGANISATIONS}/a{seed}")
            owner = f"org_f{seed % ORGANISATIONS}"
            self.versions.append(bundles.add(made.path, owner=owner, private=True, trusted=False))
            self.merged.append(load_graph(with_adapter_inside(self.base, tensors, folder / f"merged{seed}.onnx")))

    @staticmethod
    def key(place: int) -> str:
        return f"am_test_f{place}"

    def call(self, seed: int, x: Array, place: int | None = None) -> httpx.Response:
        """Adapter `seed` by its owner, or by organisation `place`."""
        owner = seed % ORGANISATIONS
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}
        key = self.key(owner if place is None else place)
        return self.client.post(
            f"/v2/models/f{owner}--a{seed}/infer", json=body, headers={"Authorization": f"Bearer {key}"}
        )

    def exact(self, seed: int, turn: int) -> None:
        """One call answers as the adapter's own merged session."""
        x = rows(1 + turn % 3, seed=turn)
        answer = self.call(seed, x)
        assert answer.status_code == 200, answer.text
        (y,) = answer.json()["outputs"]
        expected = self.merged[seed].run({"x": x})["y"]
        np.testing.assert_allclose(np.float32(y["data"]).reshape(y["shape"]), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    for served in serve(tmp_path_factory.mktemp("node")):
        yield Floor(served, tmp_path_factory.mktemp("models"))


def test_each_call_of_many_at_once_gets_its_own_adapter(floor: Floor) -> None:
    draw = np.random.default_rng(4)
    seeds = [int(each) for each in draw.permutation(np.repeat(np.arange(ADAPTERS), 8))]
    with ThreadPoolExecutor(24) as callers:
        list(callers.map(floor.exact, seeds, range(len(seeds))))
    residency = floor.served.node.dataplane.residency
    (base,) = [each for each in residency.residents() if each.slots is not None]
    adapters = [each for each in residency.residents() if each.base is base]
    assert len(adapters) == ADAPTERS
    assert base.slots is not None
    assert base.slots.bytes > 0
    assert residency.held_bytes == sum(each.bytes for each in residency.residents())
    assert base.bytes >= base.slots.bytes, "the stacks that adapters share are counted as their base's"
    assert sum(each.bytes for each in adapters) < 1 << 20, "an adapter runs in process: it is no worker, and no graph"
    held = {each.name: each.bytes for each in adapters}
    for version in floor.versions:
        assert held[version.name] >= (version.bundle / "adapter.onnx_adapter").stat().st_size
    counted = {record.adapter for record in floor.served.node.usage()}
    assert counted == {f"f{seed % ORGANISATIONS}/a{seed}@1" for seed in range(ADAPTERS)}


def test_nobody_sees_or_calls_anothers_private_adapter(floor: Floor) -> None:
    for seed in range(ORGANISATIONS):
        for place in range(ORGANISATIONS):
            answer = floor.call(seed, rows(1), place)
            assert answer.status_code == (200 if place == seed else 404)
            if place != seed:
                nothing = floor.call(ADAPTERS + seed, rows(1), place).json()["error"]
                assert answer.json()["error"].replace(f"a{seed}", "a") == nothing.replace(f"a{ADAPTERS + seed}", "a")
        own = {"Authorization": f"Bearer {floor.key(seed)}"}
        listed = floor.client.post("/v2/repository/index", headers=own)
        names = {each["name"] for each in json.loads(listed.content)}
        assert {name.partition("--")[0] for name in names if name.startswith("f")} == {f"f{seed}"}


def test_adapters_survive_the_eviction_of_their_base_under_calls(floor: Floor) -> None:
    """The base and all that run on it go and come back while calls come in; no call fails, none is mixed up."""
    node, stop = floor.served.node, []

    def evict() -> int:
        gone = 0
        while not stop:
            floor.served.loop.call_soon_threadsafe(node.dataplane.residency.evict, floor.base_version)
            gone += 1
            floor.exact(gone % ADAPTERS, gone)
        return gone

    with ThreadPoolExecutor(9) as callers:
        evictor = callers.submit(evict)
        try:
            list(callers.map(floor.exact, [turn % ADAPTERS for turn in range(160)], range(160)))
        finally:
            stop.append(True)
        assert evictor.result() > 1
    assert node.dataplane.residency.evictions > 0
    assert node.dataplane.residency.held_bytes == sum(each.bytes for each in node.dataplane.residency.residents())
