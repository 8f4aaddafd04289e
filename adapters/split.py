"""Seeded splits into rows to learn from and rows to measure on. Their fingerprints: `model_store.fingerprint`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.recipe import Note
from adapters.samples import Samples
from model_store.errors import Unprocessable

Places = npt.NDArray[np.int64]
MIN_TEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Split:
    """Places of the rows. `by` says how they were parted: labels | rows | groups | order."""

    train: Places
    test: Places
    by: str


def split_places(count: int, seed: int, test_share: float) -> tuple[Places, Places]:
    """A random split of `count` rows."""
    order = np.random.default_rng(seed).permutation(count)
    size = min(count - 1, max(1, round(count * test_share)))
    return np.sort(order[size:]), np.sort(order[:size])


def split_by_labels(labels: Sequence[str], seed: int, test_share: float) -> tuple[Places, Places]:
    """A split that keeps each label's share; every label of two rows or more is on both sides."""
    random = np.random.default_rng(seed)
    names = np.array(list(labels), dtype=object)
    test: list[int] = []
    for name in sorted(set(labels)):
        places = random.permutation(np.flatnonzero(names == name))
        if len(places) > 1:
            size = min(len(places) - 1, max(1, round(len(places) * test_share)))
            test += places[:size].tolist()
    chosen = np.array(sorted(test), np.int64)
    return np.setdiff1d(np.arange(len(names)), chosen), chosen


def split_by_groups(groups: Sequence[str], seed: int, test_share: float) -> tuple[Places, Places]:
    """Whole groups (machines, engines) to one side or the other; two groups at least."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    size = min(len(names) - 1, max(1, round(len(names) * test_share)))
    chosen = {names[place] for place in order[:size]}
    inside = np.array([group in chosen for group in groups])
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def split_by_order(count: int, test_share: float) -> tuple[Places, Places]:
    """The last rows are the test: the future is predicted from the past."""
    size = min(count - 1, max(1, round(count * test_share)))
    return np.arange(count - size), np.arange(count - size, count)


def split_within_groups(groups: Sequence[str], test_share: float) -> tuple[Places, Places]:
    """The last rows of every group are the test: the same machines, later."""
    names, test = np.array(list(groups), dtype=object), []
    for name in sorted(set(groups)):
        places = np.flatnonzero(names == name)
        test += places[len(places) - round(len(places) * test_share) :].tolist()
    chosen = np.array(sorted(test), np.int64)
    return np.setdiff1d(np.arange(len(names)), chosen), chosen


def split_samples(
    samples: Samples, seed: int, test_share: float, ordered: bool = False, whole_groups: bool = True
) -> Split:
    """By whole groups where there are groups, by order for a series, else by labels (classes) or at random (values)."""
    count = len(samples.rows)
    if samples.groups and ordered and not whole_groups:
        by, (train, test) = "order", split_within_groups(samples.groups, test_share)
    elif len(set(samples.groups)) >= 2:
        by, (train, test) = "groups", split_by_groups(samples.groups, seed, test_share)
    elif ordered:
        by, (train, test) = "order", split_by_order(count, test_share)
    elif samples.labels:
        by, (train, test) = "labels", split_by_labels(samples.labels, seed, test_share)
    else:
        by, (train, test) = "rows", split_places(count, seed, test_share)
    if len(test) < MIN_TEST_ROWS or len(train) < MIN_TEST_ROWS:
        raise Unprocessable(
            "SAMPLES_TOO_FEW",
            zh=f"样本过少, 无法划分训练与测试 ({len(train)} / {len(test)} 行)",
            en=f"too few samples to learn from and to measure on ({len(train)} / {len(test)} rows)",
            remedy_zh="请补充样本",
            remedy_en="add samples",
            field="sample_set_id",
        )
    return Split(train, test, by)


def notes(split: Split) -> list[Note]:
    """What a reader must know of how the rows were parted."""
    if split.by == "groups":
        zh, en = "测试用的设备 (组) 完全未参与训练。", "The machines (groups) measured on took no part in training."
        return [Note("SPLIT_BY_GROUPS", zh=zh, en=en)]
    if split.by == "order":
        zh, en = (
            "没有分组列: 按先后划分, 用最后一段评测。",
            "No group column: split by time, measured on the last part.",
        )
        return [Note("SPLIT_BY_ORDER", zh=zh, en=en)]
    return []
