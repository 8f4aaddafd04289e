"""A real adaptation, and the process that trains it."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import numpy as np
import psutil

from tests.killnine.town import ok

HEADINGS = "产品类型,空气温度,过程温度,转速,扭矩,刀具磨损,故障"
ROWS = 900


def start_job(client: httpx.Client, name: str) -> dict[str, Any]:
    """Hand in rows of a made-up machine and have a model trained on them, under that name."""
    random = np.random.default_rng(1)
    lines = [HEADINGS]
    for _ in range(ROWS):
        torque, wear = random.normal(40, 10), random.uniform(0, 250)
        label = "failure" if torque * wear > 9_000 else "normal"
        measured = (random.normal(300, 2), random.normal(310, 1), random.normal(1540, 180), torque, wear)
        lines.append(",".join(["L", *(f"{value:.1f}" for value in measured), label]))
    files = {"file": ("rows.csv", "\n".join(lines).encode())}
    samples = ok(client.post("/v1/sample-sets", files=files, data={"label_column": "故障"}))["id"]
    body = {"recipe": "tabular_retrain", "sample_set_id": samples, "name": name, "label_column": "故障",
            "params": {"iterations": 500}}  # fmt: skip
    return dict(ok(client.post("/v1/adapt", json=body)))


def runner_of(pid: int, job: str) -> psutil.Process | None:
    """The process under the market `pid` that trains this job; None while there is none."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "adapters.run_job" in command and job in command[-1]:
                return process
    return None
