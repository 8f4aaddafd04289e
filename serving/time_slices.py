"""How long a thread may hold a core before another's turn: asked of Linux, without privilege.

Linux (6.12 on, EEVDF) takes a wish for the slice of an ordinary thread: `sched_setattr(2)` with `sched_runtime` from
0.1 to 100 ms. Who wakes up with a shorter slice than the one that runs takes the core from it at once, where its share
of the core allows. So the event loop asks for a short slice and threads that run graphs for a long one: a request is
then read while a graph runs, not when its slice (a few milliseconds, or the next tick) is over. Shares stay as they
were: nobody gets more of the core, only sooner. Elsewhere, and on older kernels, nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

LOOP_SLICE_MS = 0.1
RUN_SLICE_MS = 20.0
_LEAST_MS, _MOST_MS = 0.1, 100.0
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SCHED_OTHER = 0
_RESET_ON_FORK = 0x01  # threads and processes that this one starts have the usual slice


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr`, its first version (48 bytes)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("sched_policy", ctypes.c_uint32),
        ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", ctypes.c_uint32),
        ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64),
        ("sched_period", ctypes.c_uint64),
    )


def ask_for_slice(slice_ms: float) -> bool:
    """Ask for the calling thread's slice; whether the kernel took the wish (older ones ignore it silently).

    Only a thread of the ordinary policy asks: whoever was given another keeps it. The niceness stays; who was given one
    below zero does not ask, because what it starts would lose that.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None or os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice < 0:
        return False
    slice_ns = int(min(max(slice_ms, _LEAST_MS), _MOST_MS) * 1e6)
    wish = _SchedAttr(ctypes.sizeof(_SchedAttr), _SCHED_OTHER, _RESET_ON_FORK, nice, 0, slice_ns, 0, 0)
    syscall = ctypes.CDLL(None).syscall
    failed: int = syscall(ctypes.c_long(number), ctypes.c_int(0), ctypes.byref(wish), ctypes.c_uint(0))
    return not failed
