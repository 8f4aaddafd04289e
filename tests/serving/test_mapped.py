"""Weights in a file of their own: a first answer early, a second stage behind it, and pages that processes share."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from model_store.bundle import Bundle, open_bundle
from model_store.mapped import LEAST_BYTES, MEASURED, WEIGHTS, find_mapped, write_mapped
from model_store.runtime import load_graph
from serving import mapping
from serving import residency as module
from serving.mapping import Mapper
from serving.memory_admission import FolderBundles
from serving.ports import ServedVersion
from serving.residency import Residency
from serving.resident import HOT_USES, Resident, estimate_bytes
from serving.settings import ServingSettings
from tests.serving.parts import FLOAT, bundle, double, model, until

WIDE = 1200  # columns: 5.8 MB of weights
X = np.random.default_rng(5).normal(size=(4, WIDE)).astype(np.float32)


def wide() -> onnx.ModelProto:
    """y = x W for rows of WIDE numbers."""
    weights = np.random.default_rng(4).normal(size=(WIDE, WIDE)).astype(np.float32)
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], [info("x", FLOAT, ["n", WIDE])], [info("y", FLOAT, ["n", WIDE])], {"w": weights})


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("bundles") / "wide", "a/wide", wide())


@pytest.fixture(scope="module")
def mapped_folder(sealed: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    write_mapped(sealed.model_path, folder, sealed.digest)
    return folder


@pytest.fixture
def served(sealed: Bundle) -> ServedVersion:
    return FolderBundles().add(sealed.path)


@pytest.fixture
async def residency(mapped_folder: Path) -> AsyncIterator[Residency]:
    opened = Residency(ServingSettings(mapped_folder=mapped_folder))
    yield opened
    await opened.close()


def test_a_mapped_model_answers_the_same_and_leaves_its_bundle_alone(sealed: Bundle, mapped_folder: Path) -> None:
    mapped = find_mapped(mapped_folder, sealed.digest)
    assert mapped is not None
    expected = load_graph(sealed.model_path).run({"x": X})["y"]
    for prepack in (False, True):
        found = load_graph(mapped.path, prepack=prepack).run({"x": X})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    weights = 4 * WIDE * WIDE
    assert mapped.mapped_bytes < weights / 4 <= weights / 2 < mapped.prepacked_bytes
    assert open_bundle(sealed.path, verify=True).digest == sealed.digest


def test_a_graph_that_copies_its_weights_is_not_mapped_and_not_tried_again(tmp_path: Path) -> None:
    weights = np.ones((256, 512, 3, 3), np.float32)  # a convolution's are laid out anew when it is loaded
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    graph = model([node], [info("x", FLOAT, ["n", 512, 9, 9])], [info("y", FLOAT, ["n", 256, 7, 7])], {"w": weights})
    sealed = bundle(tmp_path / "conv", "a/conv", graph)
    write_mapped(sealed.model_path, tmp_path / "mapped", sealed.digest)
    assert find_mapped(tmp_path / "mapped", sealed.digest) is None
    assert [path.name for path in (tmp_path / "mapped" / sealed.digest).iterdir()] == [MEASURED]


def test_two_processes_that_run_one_model_share_its_pages(sealed: Bundle, mapped_folder: Path) -> None:
    mapped = find_mapped(mapped_folder, sealed.digest)
    assert mapped is not None
    program = (
        "import sys, numpy; from pathlib import Path; from model_store.runtime import load_graph\n"
        f"graph = load_graph(Path({str(mapped.path)!r}), prepack=False)\n"
        f"graph.run({{'x': numpy.ones((1, {WIDE}), 'float32')}}); print('ran', flush=True); sys.stdin.read()"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "ab"
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ran\n"
        for child in children:
            pages = pages_of(child.pid, WEIGHTS)
            assert pages["Shared_Clean"] >= 4 * WIDE * WIDE * 0.95 / 1024
            assert pages["Private_Clean"] + pages["Private_Dirty"] <= 0.05 * pages["Rss"]
    finally:
        for child in children:
            child.communicate()


def pages_of(pid: int, name: str) -> dict[str, int]:
    """KiB by kind, of what a process has mapped of a file."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(f"/{name}")
        elif inside and line.endswith(" kB"):
            key, value, _ = line.split()
            found[key.rstrip(":")] = found.get(key.rstrip(":"), 0) + int(value)
    return found


async def test_a_hot_model_is_prepacked_while_its_calls_go_on(residency: Residency, served: ServedVersion) -> None:
    resident = await residency.acquire(served)
    mapped = resident.mapped
    assert mapped is not None
    assert residency.held_bytes == resident.bytes == max(mapped.mapped_bytes, 256 << 10)
    expected = resident.runner.run({"x": X})["y"]
    ended = threading.Event()
    failures: list[BaseException] = []

    def call() -> None:
        while not ended.is_set():
            try:
                np.testing.assert_allclose(resident.runner.run({"x": X})["y"], expected, rtol=1e-4, atol=1e-4)
            except BaseException as error:
                failures.append(error)
                return

    caller = threading.Thread(target=call)
    caller.start()
    try:
        for _ in range(HOT_USES):
            residency.release(await residency.acquire(served))
        await until(lambda: resident.mapped is None)
    finally:
        ended.set()
        caller.join()
    assert failures == []
    assert residency.held_bytes == resident.bytes == mapped.prepacked_bytes
    assert residency.loads == 1
    residency.release(resident)


async def test_what_is_unloaded_while_its_second_stage_is_built_stays_unloaded(
    residency: Residency, served: ServedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident, gate = await hot_and_building(residency, served, monkeypatch)
    assert residency.held_bytes > resident.bytes  # both stages
    residency.release(resident)
    assert residency.evict(served)
    gate.set()
    await until(lambda: residency.held_bytes == 0)
    assert residency.residents() == []
    again = await residency.acquire(served)
    assert again.mapped is not None
    assert again.runner.run({"x": X})["y"].shape == X.shape
    residency.release(again)


async def test_a_node_closes_while_a_second_stage_is_built(
    mapped_folder: Path, served: ServedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = Residency(ServingSettings(mapped_folder=mapped_folder))
    _, gate = await hot_and_building(residency, served, monkeypatch)
    closing = asyncio.create_task(residency.close())
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert residency.held_bytes == 0


async def hot_and_building(
    residency: Residency, served: ServedVersion, monkeypatch: pytest.MonkeyPatch
) -> tuple[Resident, threading.Event]:
    """A resident in hand whose second stage waits for the event."""
    gate = threading.Event()
    begun = threading.Event()

    def gated(path: Path) -> object:
        begun.set()
        assert gate.wait(20)
        return load_graph(path)

    monkeypatch.setattr(module, "load_graph", gated)
    resident = await residency.acquire(served)
    for _ in range(HOT_USES):
        residency.release(await residency.acquire(served))
    await until(begun.is_set)
    return resident, gate


async def test_nobody_is_unloaded_for_a_second_stage(mapped_folder: Path, sealed: Bundle, tmp_path: Path) -> None:
    small = bundle(tmp_path / "small", "a/small", double())
    budget = estimate_bytes(small, True) + 4 * WIDE * WIDE // 2
    residency = Residency(ServingSettings(mapped_folder=mapped_folder, memory_budget_bytes=budget))
    bundles = FolderBundles()
    served, other = bundles.add(sealed.path), bundles.add(small.path)
    residency.release(await residency.acquire(other))
    for _ in range(4 * HOT_USES):
        resident = await residency.acquire(served)
        residency.release(resident)
    assert resident.mapped is not None
    assert {each.name for each in residency.residents()} == {"a/wide", "a/small"}
    assert residency.held_bytes <= budget
    await residency.close()


async def test_a_model_that_is_run_is_mapped_for_its_next_load(sealed: Bundle, tmp_path: Path) -> None:
    settings = ServingSettings(mapped_folder=tmp_path / "mapped")
    residency = Residency(settings)
    served = FolderBundles().add(sealed.path)
    unlisted = replace(served, trusted=False)
    first = await residency.acquire(served)
    assert first.mapped is None
    residency.mapper.want(unlisted)  # what nobody has reviewed is loaded in its limited worker only
    await residency.mapper.settled()
    expected = first.runner.run({"x": X})["y"]
    residency.release(first)
    assert residency.evict(served)
    second = await residency.acquire(served)
    assert second.mapped is not None
    np.testing.assert_allclose(second.runner.run({"x": X})["y"], expected, rtol=1e-4, atol=1e-4)
    residency.release(second)
    await residency.close()


async def test_where_nothing_can_be_written_a_model_runs_as_it_is(sealed: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mapped").write_text("a file where the folder would be")
    residency = Residency(ServingSettings(mapped_folder=tmp_path / "mapped"))
    served = FolderBundles().add(sealed.path)
    resident = await residency.acquire(served)
    await residency.mapper.settled()
    assert resident.runner.run({"x": X})["y"].shape == X.shape
    residency.release(resident)
    await residency.close()


def stuck(served: ServedVersion, folder: Path) -> ServedVersion:
    """A version whose graph is a pipe that nobody writes into: who reads it waits for ever."""
    folder.mkdir()
    os.mkfifo(folder / "model.onnx")
    (folder / "weights.bin").write_bytes(bytes(LEAST_BYTES))
    return replace(served, name="a/stuck", bundle=folder, digest="stuck")


def children() -> list[psutil.Process]:
    running = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in running if "model_store.mapped" in each.cmdline()]


async def test_many_models_are_mapped_by_one_child_that_is_not_started_on_the_loop(
    sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starters = []

    def popen(*arguments: Any, **options: Any) -> Any:
        starters.append(threading.current_thread())
        return start(*arguments, **options)

    start = subprocess.Popen
    monkeypatch.setattr(mapping.subprocess, "Popen", popen)
    served = FolderBundles().add(sealed.path)
    mapper = Mapper(tmp_path)
    for digest in "ab":
        mapper.want(replace(served, digest=digest))
    await mapper.settled()
    assert all(find_mapped(tmp_path, digest) for digest in "ab")
    assert len(starters) == 1
    assert starters[0] is not threading.current_thread()
    assert not children()
    mapper.want(replace(served, digest="c"))
    await mapper.settled()
    assert find_mapped(tmp_path, "c")


async def test_a_child_that_is_killed_leaves_the_next_model_to_another(
    served: ServedVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapper = Mapper(tmp_path / "mapped")
    mapper.want(stuck(served, tmp_path / "stuck"))
    mapper.want(served)
    await until(lambda: bool(children()))
    children()[0].kill()
    await mapper.settled()
    assert "its process ended with -9" in caplog.text
    assert find_mapped(tmp_path / "mapped", served.digest)


async def test_one_that_takes_too_long_is_given_up(
    served: ServedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mapping, "PATIENCE_S", 0.01)
    mapper = Mapper(tmp_path / "mapped")
    mapper.want(stuck(served, tmp_path / "stuck"))
    await mapper.settled()
    assert "a/stuck@1 cannot be mapped: not done" in caplog.text
    assert not children()


async def test_closing_waits_for_no_model(served: ServedVersion, tmp_path: Path) -> None:
    mapper = Mapper(tmp_path / "mapped")
    mapper.want(stuck(served, tmp_path / "stuck"))
    await until(lambda: bool(children()))
    await mapper.close()
    assert not children()
    assert not find_mapped(tmp_path / "mapped", "stuck")


async def test_a_model_that_cannot_be_read_is_said_and_the_next_one_is_mapped(
    served: ServedVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no graph" * (LEAST_BYTES // 8))
    mapper = Mapper(tmp_path / "mapped")
    mapper.want(replace(served, name="a/broken", bundle=broken, digest="broken"))
    mapper.want(served)
    await mapper.settled()
    assert "a/broken@1 cannot be mapped: DecodeError" in caplog.text
    assert find_mapped(tmp_path / "mapped", served.digest)
