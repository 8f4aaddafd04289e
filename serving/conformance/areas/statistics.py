"""Area statistics: Triton's counts and durations per model."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from serving.conformance.checks import Area, expect, triton
from serving.conformance.kit import ABSENT, Kit
from serving.conformance.tensors import outputs_of
from serving.conformance.wire import Exchange

AREA = Area("statistics", "T", "统计")
CLAIM = "statistics"
COUNTED_S = 2.0
_about = partial(triton, "statistics", "Statistics Response JSON Object")
_FIELDS = _about('"name", "last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats"')
_DURATION = _about('$duration_stat = { "count" : $number, "ns" : $number }')
_COUNT = _about("Each inference in a batched request is counted as an individual inference.")
_SUCCESS = _about("success: The count and cumulative duration for all successful inference requests.")
_LAST = _about("The timestamp of the last inference request made for this model, as milliseconds since the epoch.")
_ALL = triton("statistics", "HTTP/REST", "if not provided Triton will return the statistics for all models")
_ERROR = triton("statistics", "Statistics Response JSON Error Object", "indicated by an HTTP error status")
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit")


def _of(kit: Kit, name: str) -> list[dict[str, Any]]:
    return _entries(kit.get(kit.path(name, "stats")))


def _entries(exchange: Exchange) -> list[dict[str, Any]]:
    expect(exchange.status == 200, f"{exchange.failure or exchange.status}, not 200", exchange)
    found = exchange.json()
    listed = found.get("model_stats") if isinstance(found, dict) else None
    expect(isinstance(listed, list), "model_stats is not an array", exchange)
    assert isinstance(listed, list)
    expect(all(isinstance(each, dict) for each in listed), "an entry is not an object", exchange)
    return listed


def _sum(entries: list[dict[str, Any]], *path: str) -> int:
    """A number of every version's entry, added up. Raises `Unmet` where it is none."""
    total = 0
    for entry in entries:
        value: Any = entry
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        expect(isinstance(value, int | float), f"{'.'.join(path)} is {value!r}")
        total += int(value)
    return total


def _risen(kit: Kit, name: str, least: int, *path: str) -> int:
    """The number once it is `least`, or after two seconds: a server may count after it has answered."""
    deadline = time.monotonic() + COUNTED_S
    while (found := _sum(_of(kit, name), *path)) < least and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@AREA.extension(CLAIM, "统计字段齐全", "the entry's fields", _FIELDS)
def fields(kit: Kit) -> None:
    outputs_of(kit.infer_subject())
    entries = _of(kit, kit.subject)
    expect(bool(entries), "model_stats is empty")
    for entry in entries:
        expect(entry.get("name") == kit.subject, f"the name is {entry.get('name')!r}")
        expect(isinstance(entry.get("version", ""), str), "version is not a string")
        expect(isinstance(entry.get("batch_stats"), list), "batch_stats is not an array")
    for number in ("last_inference", "inference_count", "execution_count"):
        expect(_sum(entries, number) >= 0, f"{number} is negative")


@AREA.extension(CLAIM, "时长含 count 与 ns", "every duration has count and ns", _DURATION)
def durations(kit: Kit) -> None:
    entries = _of(kit, kit.subject)
    for name in _DURATIONS:
        for part in ("count", "ns"):
            expect(_sum(entries, "inference_stats", name, part) >= 0, f"{name}.{part} is negative")


@AREA.extension(CLAIM, "成功次数增加", "three calls raise success by three", _SUCCESS)
def success_rises(kit: Kit) -> None:
    before = _sum(_of(kit, kit.subject), "inference_stats", "success", "count")
    for _ in range(3):
        outputs_of(kit.infer_subject())
    after = _risen(kit, kit.subject, before + 3, "inference_stats", "success", "count")
    expect(after >= before + 3, f"success.count went from {before} to {after}")


@AREA.extension(CLAIM, "整批按行计数", "a batch of four raises inference_count by four", _COUNT, needs=("mlp",))
def rows_count(kit: Kit) -> None:
    name = kit.name_of("mlp")
    kit.outputs("mlp", ("x", "FP32", np.ones((4, 4), np.float32)))
    before = _sum(_of(kit, name), "inference_count")
    kit.outputs("mlp", ("x", "FP32", np.ones((4, 4), np.float32)))
    after = _risen(kit, name, before + 4, "inference_count")
    expect(after >= before + 4, f"inference_count went from {before} to {after}")


@AREA.extension(CLAIM, "最近推理时刻为毫秒", "last_inference is in milliseconds and moves on", _LAST)
def last_inference(kit: Kit) -> None:
    outputs_of(kit.infer_subject())
    before = max(int(each.get("last_inference", 0)) for each in _of(kit, kit.subject))
    outputs_of(kit.infer_subject())
    after = max(int(each.get("last_inference", 0)) for each in _of(kit, kit.subject))
    expect(10**12 < before <= after < 10**14, f"last_inference was {before}, then {after}")


@AREA.extension(CLAIM, "全部模型的统计", "the statistics of all models have this one", _ALL)
def all_models(kit: Kit) -> None:
    outputs_of(kit.infer_subject())
    names = {each.get("name") for each in _entries(kit.get("v2/models/stats"))}
    expect(kit.subject in names, f"{kit.subject} is not among {len(names)} models")


@AREA.extension(CLAIM, "不存在的模型: error", "an unknown model's statistics are an error object", _ERROR)
def unknown(kit: Kit) -> None:
    exchange = kit.get(kit.path(ABSENT, "stats"))
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status} is no error status", exchange)
    exchange.error()
