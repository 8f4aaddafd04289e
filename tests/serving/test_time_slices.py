"""The event loop asks for a short slice of a core, threads that run graphs for a long one; where the kernel knows none,
nothing happens."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving import time_slices
from serving.time_slices import LOOP_SLICE_MS, RUN_SLICE_MS, ask_for_slice


def slice_ns() -> int | None:
    """The calling thread's slice as the kernel tells it; None where it tells none."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/sched")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split(":")[1]) for line in lines if line.startswith("se.slice")), None)


def in_a_thread(act: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def caught() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def kernel_takes_slices() -> bool:
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    return sys.platform == "linux" and release >= (6, 12) and slice_ns() is not None


@pytest.mark.skipif(not kernel_takes_slices(), reason="this kernel takes no wish for a slice")
def test_a_thread_gets_the_slice_it_asks_for_and_what_it_starts_the_usual_one() -> None:
    usual = slice_ns()

    def act() -> None:
        for slice_ms in (LOOP_SLICE_MS, RUN_SLICE_MS):
            assert ask_for_slice(slice_ms)
            assert slice_ns() == slice_ms * 1e6
        in_a_thread(lambda: _is(usual))

    in_a_thread(act)
    assert slice_ns() == usual  # of this thread, which has not asked


def _is(expected: int | None) -> None:
    assert slice_ns() == expected


def test_the_niceness_stays() -> None:
    said = subprocess.run(
        ["nice", "-n", "7", sys.executable, "-c",
         "from serving.time_slices import *; ask_for_slice(LOOP_SLICE_MS); import os; print(os.nice(0))"],
        check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout  # fmt: skip
    assert int(said) == min(19, os.nice(0) + 7)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root goes below zero")
def test_a_niceness_below_zero_is_not_lost_to_what_is_started() -> None:
    def act() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, -3)
        assert not ask_for_slice(LOOP_SLICE_MS)

    in_a_thread(act)


def test_whoever_was_given_another_policy_keeps_it() -> None:
    def act() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        assert not ask_for_slice(LOOP_SLICE_MS)
        assert os.sched_getscheduler(0) == os.SCHED_BATCH

    in_a_thread(act)


def test_where_the_call_is_not_known_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_slices, "_SCHED_SETATTR", {})
    assert not ask_for_slice(LOOP_SLICE_MS)
