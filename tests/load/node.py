"""A lone serving node for load: `python -m tests.load.node FOLDER PORT [NICENESS]`. One thread for graphs, one call at
a time, so that what it can do is known and a second core is left for whoever calls."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.journal import JournalWriter
from serving.memory_admission import FolderBundles, MemoryAdmission, Purse
from serving.metering import PriceLine
from serving.ports import Ports, Principal
from serving.server import server_of
from serving.settings import ServingSettings
from tests.serving.parts import bundle, double, model

SLOW, FAST = "load/slow", "load/fast"
FACTORY_KEY, FLOOD_KEY = "load-key-factory", "load-key-flood"
KEYS = {FACTORY_KEY: "factory", FLOOD_KEY: "flood"}
IDEMPOTENCY_KEYS = 5_000  # few, so that the table is full long before a soak has settled
WIDTH, STEPS = 1024, 120


def slow_double(columns: int = 3) -> Any:
    """y = 2x, by way of `STEPS` products with one permutation of `WIDTH` places: exact, and milliseconds long."""
    chance = np.random.default_rng(7)
    order = chance.permutation(WIDTH)
    step = np.zeros((WIDTH, WIDTH), np.float32)
    step[np.arange(WIDTH), order] = 1
    places = np.arange(columns)
    spread = np.zeros((columns, WIDTH), np.float32)
    spread[np.arange(columns), places] = 1
    for _ in range(STEPS):
        places = order[places]
    gather = np.zeros((WIDTH, columns), np.float32)
    gather[places, np.arange(columns)] = 2
    info = helper.make_tensor_value_info
    names = [f"h{index}" for index in range(STEPS + 1)]
    nodes = [helper.make_node("MatMul", ["x", "spread"], [names[0]])]
    nodes += [helper.make_node("MatMul", [one, "step"], [other]) for one, other in itertools.pairwise(names)]
    nodes.append(helper.make_node("MatMul", [names[-1], "gather"], ["y"]))
    return model(
        nodes,
        [info("x", TensorProto.FLOAT, ["n", columns])],
        [info("y", TensorProto.FLOAT, ["n", columns])],
        {"spread": spread, "step": step, "gather": gather},
    )


def open_load_node(folder: Path, **more: Any) -> ServingApp:
    bundles = FolderBundles()
    bundles.add(bundle(folder / "slow", SLOW, slow_double(), batching={"dynamic": False}).path)
    bundles.add(bundle(folder / "fast", FAST, double()).path)
    organisations = {name: f"org_{name}" for name in KEYS.values()}
    admission = MemoryAdmission(
        keys={
            key: Principal(f"key_{name}", organisations[name], "enterprise", frozenset({"use"}))
            for key, name in KEYS.items()
        },
        prices={name: PriceLine(f"prc_{name}", name, "calls", 370_000, 1, 3) for name in (SLOW, FAST)},
        purses={name: Purse(10**15, 10**15, 10**13) for name in organisations.values()},
    )
    ports = Ports(admission=admission, bundles=bundles)
    settings = ServingSettings(threads=1, key_concurrency=0, idempotency_entries=IDEMPOTENCY_KEYS, **more)
    return ServingApp(DataPlane(ports, settings, JournalWriter(folder / "journal", "load", 1)), ports)


if __name__ == "__main__":
    given = {"run_niceness": int(sys.argv[3])} if len(sys.argv) > 3 else {}
    server_of(open_load_node(Path(sys.argv[1]), **given), "127.0.0.1", int(sys.argv[2]), log_level="warning").run()
