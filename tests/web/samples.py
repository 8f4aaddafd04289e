"""Readings of a milling machine as a factory would bring them: generated, seeded, with the factory's own headings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

HEADINGS = ["产品等级", "环境温度[K]", "过程温度[K]", "转速[rpm]", "扭矩[Nm]", "刀具磨损", "设备故障"]


def write_milling_rows(path: Path, rows: int = 200, seed: int = 5) -> Path:
    """A CSV of `rows` rows; about a quarter are failures: worn tools under high torque, or far too much power."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADINGS)
        for _ in range(rows):
            air = random.normal(300, 2)
            speed, torque = random.uniform(1250, 2600), random.uniform(15, 70)
            wear = random.uniform(0, 240)
            failed = wear * torque > 11_000 or torque * speed * 2 * np.pi / 60 > 12_500
            readings = [round(float(value), 1) for value in (air, air + 10, speed, torque, wear)]
            writer.writerow([random.choice(["L", "M", "H"]), *readings, int(failed)])
    return path
