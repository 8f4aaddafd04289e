"""`python -m model_store.inspection.child`: the limited subprocess in which bundles are tried.

It leaves the network, imports what a trial needs once (0.4 s), and then forks for each bundle: the fork takes resource
limits, tries one bundle and ends. So an inspection costs milliseconds, and nothing of one bundle reaches the next.

Talk, one JSON document a line: in `{"bundle", "base", "private", "limits", "bundle_bytes", "sealed"}`; out first
`{"ready", "isolated"}`, then for each bundle `["stage"|"findings"|"facts"|"golden"|"cost"|"scorecard", value]` as
known, and last `["end", {"signal", "status", "timed_out", "cpu_s"}]`. Ends when its input does, or after `IDLE_S`
without a request.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from model_store.inspection.limits import Limits
from model_store.inspection.sandbox import bound_resources, die_with_parent, leave_network

IDLE_S = 120.0
MAX_SENT_BYTES = 16 << 20
_READ_BYTES = 1 << 16
OUT_OF_MEMORY = 3  # exit status of a fork that could not even say so


def main() -> None:
    isolated = leave_network()  # before any import that might start a thread
    control, answers = _private_pipes()
    import model_store.inspection.trial  # noqa: F401  # here, so that every fork has it already

    gc.collect()
    gc.freeze()  # forks share these objects for as long as possible
    _write(answers, {"ready": True, "isolated": isolated})
    buffer = b""
    while True:
        while b"\n" not in buffer:
            ready, _, _ = select.select([control], [], [], IDLE_S)
            chunk = os.read(control, _READ_BYTES) if ready else b""
            if not chunk:
                return
            buffer += chunk
        line, _, buffer = buffer.partition(b"\n")
        if not _try_bundle(orjson.loads(line), control, answers):
            return


def _private_pipes() -> tuple[int, int]:
    """Standard input and output under other numbers; what libraries print goes nowhere near the protocol."""
    control, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    return control, answers


def _write(descriptor: int, value: Any) -> None:
    data = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS) + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _try_bundle(request: dict[str, Any], control: int, answers: int) -> bool:
    """Fork, pass on what the fork says, end it in time. False: whoever asked is gone."""
    limits = Limits(**request["limits"])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.close(control)
        os.close(answers)
        _be_the_fork(request, limits, writer)
    os.close(writer)
    end = time.monotonic() + limits.wall_s
    timed_out, asked = _pass_on(reader, control, answers, end)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(reader)
    if asked:
        ended = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1,
            "timed_out": timed_out,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }
        _write(answers, ["end", ended])
    return asked


def _pass_on(reader: int, control: int, answers: int, end: float) -> tuple[bool, bool]:
    """Copy whole lines from the fork until it ends; returns (timed out, the asker is still there)."""
    buffer, sent = b"", 0
    while True:
        ready, _, _ = select.select([reader, control], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return True, True
        if control in ready and reader not in ready:
            return False, False  # nothing is asked while a bundle is being tried, so this is the end of the input
        chunk = os.read(reader, _READ_BYTES)
        sent += len(chunk)
        if not chunk or sent > MAX_SENT_BYTES:
            return False, True
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError):
                _write(answers, orjson.loads(line))


def _be_the_fork(request: dict[str, Any], limits: Limits, writer: int) -> None:
    """Try the bundle within the limits; never returns."""
    from model_store.inspection.sealed import sealed_set_of
    from model_store.inspection.trial import run_trial

    status = 1
    try:
        os.setsid()
        die_with_parent()
        bound_resources(limits, int(request["bundle_bytes"]))
        sealed = [sealed_set_of(each) for each in request["sealed"]]
        base = Path(request["base"]) if request["base"] else None
        run_trial(
            Path(request["bundle"]),
            bool(request["private"]),
            limits,
            sealed,
            lambda kind, v: _write(writer, [kind, v]),
            base,
        )
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    except BaseException as error:  # whatever it is, it is said, and this process ends here
        with contextlib.suppress(BaseException):
            _write(writer, ["broken", f"{type(error).__name__}: {error}"[:300]])
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
    sys.exit(0)
