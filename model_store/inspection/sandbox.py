"""What a process does to itself before it touches a stranger's graph: no network, bounded resources, no new rights."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

from model_store.inspection.limits import Limits

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def leave_network() -> bool:
    """Enter an own user and network namespace (what `unshare -rn` does); True where that was allowed.

    Needs to be called while the process has one thread. The new user namespace also takes away what rights root had
    outside it. Where the kernel or a container forbids it, returns False and the report says "not isolated".
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        left = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWNET) == 0
        return left and not Path("/proc/self/net/route").read_text().splitlines()[1:]
    except (OSError, AttributeError):
        return False


def die_with_parent() -> None:
    """SIGKILL when the process that started us ends, however it ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def bound_resources(limits: Limits, bundle_bytes: int) -> None:
    """Apply the limits to this process: address space, CPU seconds, bytes written to a file, open files, no core."""
    space = mapped_bytes() + limits.memory_bytes + 2 * bundle_bytes
    _bound(resource.RLIMIT_AS, space)
    _bound(resource.RLIMIT_CPU, limits.cpu_s)
    _bound(resource.RLIMIT_FSIZE, limits.written_bytes)
    _bound(resource.RLIMIT_NOFILE, 128)
    _bound(resource.RLIMIT_CORE, 0)


def _bound(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (ceiling, ceiling))


def mapped_bytes() -> int:
    """Address space in use, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def private_bytes() -> int:
    """Memory that is this process's alone, bytes: what unloading would give back. 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    fields = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return 1024 * (int(fields.get("Private_Clean", 0)) + int(fields.get("Private_Dirty", 0)))
