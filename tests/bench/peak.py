"""A program's own peak memory: `python -m tests.bench.peak MODULE ARGUMENTS…` runs it and tells on standard error.

`ru_maxrss` would count that of the process which started it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

TOLD = "peak_rss_mib="


def peak_mib() -> int:
    """MiB that this process held in memory at most. LookupError: the kernel does not tell."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    raise LookupError("the kernel does not tell VmHWM")


def told_by(standard_error: str) -> int:
    """What a process that ran under this one told. LookupError: nothing."""
    for line in reversed(standard_error.splitlines()):
        if line.startswith(TOLD):
            return int(line.removeprefix(TOLD))
    raise LookupError(standard_error[-500:])


def main() -> None:
    module, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        print(f"{TOLD}{peak_mib()}", file=sys.stderr)


if __name__ == "__main__":
    main()
