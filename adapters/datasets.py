"""Readers of the public data that the shelf may learn from: plain rows under our own names, targets, groups.

Only sets whose terms allow what is trained on them to ship are read here (`../shared/data/README.md`, column "may train
what ships"). Each reader takes the folder that holds all sets, and returns rows in the file's order.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Source:
    """Where data is from and on what terms; `credit` is how its makers ask to be named."""

    title: str
    url: str
    licence: str
    credit: str = ""


@dataclass(slots=True)
class Rows:
    """`targets` runs beside `rows`; `groups` names what must stay on one side of a split ([]: rows stand alone)."""

    rows: list[dict[str, Any]]
    targets: list[Any]
    groups: list[str] = field(default_factory=list)


AI4I = Source(
    "AI4I 2020 Predictive Maintenance (UCI 601)",
    "https://archive.ics.uci.edu/dataset/601",
    "CC-BY-4.0",
    "S. Matzka, Explainable Artificial Intelligence for Predictive Maintenance Applications, 2020",
)
STEEL = Source(
    "Steel Plates Faults (UCI 198)",
    "https://archive.ics.uci.edu/dataset/198",
    "CC-BY-4.0",
    "M. Buscema, S. Terzi, W. Tastle, Semeion Research Center, 2010",
)
TURBOFAN = Source(
    "C-MAPSS FD001 turbofan degradation simulation (NASA)",
    "https://data.nasa.gov/dataset/cmapss-jet-engine-simulated-data",
    "public-domain",
    "A. Saxena, K. Goebel, NASA Ames Prognostics Data Repository, 2008",
)
HYDRAULIC = Source(
    "Condition monitoring of hydraulic systems (UCI 447)",
    "https://archive.ics.uci.edu/dataset/447",
    "CC-BY-4.0",
    "N. Helwig, E. Pignanelli, A. Schütze, ZeMA, 2015",
)
BEARING = Source(
    "Case Western Reserve University Bearing Data Center, 12 kHz drive end, 0 HP",
    "https://engineering.case.edu/bearingdatacenter",
    "public-for-research",
    "Case Western Reserve University Bearing Data Center",
)
POWER = Source(
    "Combined Cycle Power Plant (UCI 294)",
    "https://archive.ics.uci.edu/dataset/294",
    "CC-BY-4.0",
    "P. Tüfekci, H. Kaya, 2014",
)
CONCRETE = Source(
    "Concrete Compressive Strength (UCI 165)",
    "https://archive.ics.uci.edu/dataset/165",
    "CC-BY-4.0",
    "I-C. Yeh, 1998",
)
ORDERS = Source(
    "Excavator maintenance work orders (NIST nestor)",
    "https://github.com/usnistgov/nestor",
    "NIST-PD",
    "M. Hodkiewicz, M. Ho, 2016; distributed with NIST nestor",
)
BOARDS = Source(
    "DeepPCB (35 pairs of it)",
    "https://github.com/tangsanli5201/DeepPCB",
    "MIT",
    "S. Tang, F. He, X. Huang, J. Yang, 2019",
)

# --- tables ----------------------------------------------------------------------------------------------------------

AI4I_COLUMNS = {
    "Air temperature [K]": "air_temperature",
    "Process temperature [K]": "process_temperature",
    "Rotational speed [rpm]": "rotational_speed",
    "Torque [Nm]": "torque",
    "Tool wear [min]": "tool_wear",
}


def read_ai4i(data: Path) -> Rows:
    """10,000 rows; target "failure" (339) or "ok". The failure modes are left out: they are the answer."""
    found = Rows([], [])
    with (data / "ai4i2020" / "ai4i2020.csv").open(encoding="utf-8-sig", newline="") as stream:
        for line in csv.DictReader(stream):
            row: dict[str, Any] = {"product_type": line["Type"]}
            row.update({name: float(line[heading]) for heading, name in AI4I_COLUMNS.items()})
            found.rows.append(row)
            found.targets.append("failure" if line["Machine failure"] == "1" else "ok")
    return found


STEEL_FAULTS = ("pastry", "z_scratch", "k_scratch", "stains", "dirtiness", "bumps", "other")


def read_steel(data: Path) -> Rows:
    """1,941 rows of 27 numbers (headings as published, lower case); target one of `STEEL_FAULTS`."""
    with (data / "steel_plates" / "SteelPlatesFaults_Clean.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        headings = [name.strip().lower() for name in next(reader)]
        lines = [[float(cell) for cell in line] for line in reader if line]
    width = len(headings) - len(STEEL_FAULTS)
    rows = [dict(zip(headings[:width], line[:width], strict=True)) for line in lines]
    return Rows(rows, [STEEL_FAULTS[int(np.argmax(line[width:]))] for line in lines])


def read_uci(data: Path, folder: str, names: Sequence[str]) -> Rows:
    """`uci_power_plant` or `uci_concrete`: numbers under `names`, the last column the target."""
    table = np.loadtxt(data / folder / "data.txt")
    rows = [dict(zip(names, (float(cell) for cell in line[:-1]), strict=True)) for line in table]
    return Rows(rows, [float(line[-1]) for line in table])


def read_fixed_split(data: Path, folder: str, number: int = 0) -> tuple[list[int], list[int]]:
    """One of the ten published splits: places of the training and of the test rows."""
    train, test = (
        np.loadtxt(data / folder / f"index_{part}_{number}.txt").astype(int).tolist() for part in ("train", "test")
    )
    return sorted(train), sorted(test)


def read_orders(data: Path) -> Rows:
    """5,485 work orders: {"text"}, target the major system as cleaned by NIST ("NA" where none was found)."""
    found = Rows([], [])
    with (data / "excavator_orders" / "excavators-cleaned.csv").open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            found.rows.append({"text": line["OriginalShorttext"] or ""})
            found.targets.append(line["MajorSystem"])
            found.groups.append(line["Asset"])
    return found


# --- series ----------------------------------------------------------------------------------------------------------

TURBOFAN_SENSORS = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)  # the other seven never change in FD001


def read_turbofan(data: Path, part: str, cap: float = 125.0) -> Rows:
    """`part` train or test: a row for each cycle of each engine, in order; target the cycles left, at most `cap`.

    In the test part an engine's record stops before it fails; RUL_FD001 says how much was left at its last cycle.
    """
    folder = data / "cmapss_fd001"
    table = _gz_table(folder / f"{part}_FD001.txt.gz")
    units, cycles = table[:, 0].astype(int), table[:, 1].astype(int)
    left = _gz_table(folder / "RUL_FD001.txt.gz")[:, 0] if part == "test" else np.zeros(int(units.max()))
    last = {unit: int(cycles[units == unit].max()) for unit in np.unique(units).tolist()}
    found = Rows([], [])
    for line, unit, cycle in zip(table, units.tolist(), cycles.tolist(), strict=True):
        sensors = {f"s{number}": float(line[4 + number]) for number in TURBOFAN_SENSORS}
        found.rows.append({"unit": unit, **sensors})
        found.targets.append(min(cap, float(last[unit] - cycle + left[unit - 1])))
        found.groups.append(str(unit))
    return found


def _gz_table(path: Path) -> Floats:
    with gzip.open(path, "rt", encoding="ascii") as stream:
        return np.loadtxt(stream, ndmin=2)


HYDRAULIC_SENSORS = ("TS1", "TS2", "TS3", "TS4", "VS1", "CE", "CP", "SE", "FS1", "FS2")
HYDRAULIC_CONDITIONS = ("cooler", "valve", "pump", "accumulator", "stable")
PUMP_LEAKAGE = {0: "none", 1: "weak", 2: "severe"}


def read_hydraulic(data: Path, condition: str = "pump") -> Rows:
    """2,205 load cycles of 60 s: mean, deviation and slope of each sensor over the cycle; target one condition.

    `groups` names the combination of all four conditions: cycles of one combination were run one after the other.
    """
    folder = data / "hydraulic"
    profile = np.loadtxt(folder / "profile.txt").astype(int)
    columns: dict[str, Floats] = {}
    for sensor in HYDRAULIC_SENSORS:
        cycles = _gz_table(folder / f"{sensor}.txt.gz")
        times = np.linspace(-0.5, 0.5, cycles.shape[1])
        columns[f"{sensor.lower()}_mean"] = cycles.mean(axis=1)
        columns[f"{sensor.lower()}_std"] = cycles.std(axis=1)
        columns[f"{sensor.lower()}_slope"] = (cycles @ times) / float((times**2).sum())
    names = list(columns)
    stacked = np.stack([columns[name] for name in names], axis=1)
    rows = [dict(zip(names, (round(float(cell), 6) for cell in line), strict=True)) for line in stacked]
    codes = profile[:, HYDRAULIC_CONDITIONS.index(condition)].tolist()
    targets = [PUMP_LEAKAGE[code] if condition == "pump" else str(code) for code in codes]
    return Rows(rows, targets, ["/".join(map(str, line[:4])) for line in profile.tolist()])


BEARING_SIZE = 1024
BEARING_CLASSES = {
    "Normal": "normal",
    "IR007": "inner_race_007", "IR014": "inner_race_014", "IR021": "inner_race_021",
    "B007": "ball_007", "B014": "ball_014", "B021": "ball_021",
    "OR007@6": "outer_race_007", "OR014@6": "outer_race_014", "OR021@6": "outer_race_021",
}  # fmt: skip


def read_bearing(data: Path, size: int = BEARING_SIZE) -> Rows:
    """Windows of `size` samples without overlap, in time; target the condition, `groups` the record."""
    found = Rows([], [])
    with np.load(data / "cwru" / "cwru_0hp_12k_DE.npz") as records:
        for record, label in BEARING_CLASSES.items():
            signal = records[record]
            for at in range(0, len(signal) - size + 1, size):
                found.rows.append({"vibration": [float(sample) for sample in signal[at : at + size]]})
                found.targets.append(label)
                found.groups.append(record)
    return found


# --- images ----------------------------------------------------------------------------------------------------------

BOARD_DEFECTS = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pinhole"}


@dataclass(frozen=True, slots=True)
class Board:
    """A circuit board of 640 × 640 grey pixels: a flawless template, the board tested, boxes (x1, y1, x2, y2, kind)."""

    name: str
    template: Pixels
    tested: Pixels
    boxes: tuple[tuple[int, int, int, int, str], ...]


def read_boards(data: Path) -> list[Board]:
    """The boards of deep_pcb, sorted by name."""
    found = []
    for path in sorted((data / "deep_pcb").rglob("*.txt")):
        pictures = [
            np.asarray(Image.open(path.with_name(f"{path.stem}_{kind}.jpg")).convert("L")) for kind in ("temp", "test")
        ]
        lines = [[int(cell) for cell in line.split()] for line in path.read_text("ascii").splitlines() if line.strip()]
        boxes = tuple((a, b, c, d, BOARD_DEFECTS[kind]) for a, b, c, d, kind in lines)
        found.append(Board(path.stem, pictures[0], pictures[1], boxes))
    return found


def png_bytes(pixels: Pixels) -> bytes:
    """A grey picture as PNG, for a row's image feature."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=False)
    return content.getvalue()
