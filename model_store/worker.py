"""Where a graph runs that nobody has reviewed: a child process with bounded memory and no network, killed at the
deadline.

The child speaks length-prefixed frames over its stdin and stdout: `u32 header length | JSON header | tensors`, never
pickle. It holds one graph. A graph that loops or allocates without end takes its own child down and nobody else; the
next call starts a fresh one. Without `unshare -rn` the child keeps the network; `isolated` says which.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from model_store.errors import BadInput, DeadlineExceeded, Refusal, TooLarge, Unavailable, Unprocessable
from model_store.tensors import NUMPY_OF, Array, object_array, oip_of_array, tensor_bytes

START_TIMEOUT_S = 30.0
DEFAULT_DEADLINE_MS = 10_000.0
GRACE_S = 0.25  # for an answer that is just being written when the deadline passes
MAX_HEADER_BYTES = 1 << 20
MAX_ANSWER_BYTES = 1 << 30  # where the caller sets no bound: what a child may make its parent hold
OUT_OF_MEMORY_STATUS = 3
NICENESS = 5  # what nobody has reviewed gives way to what has been, and still gets on
_LENGTH = struct.Struct("<I")
_KINDS = {kind.__name__: kind for kind in (BadInput, DeadlineExceeded, TooLarge, Unprocessable)}


class LimitedWorker:
    """One graph, with one adapter where it is named, in one child; `run` as `runtime.Graph.run`.

    Blocking, safe across threads (one run at a time).
    """

    def __init__(self, model_path: Path, memory_bytes: int = 1 << 30, adapter_path: Path | None = None) -> None:
        self._path = model_path.resolve()
        self._adapter = [] if adapter_path is None else [str(adapter_path.resolve())]
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None  # the child ends when this pipe closes, however we end
        self.isolated = False

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """Run once; `deadline_ms` counts from now, the wait for the run before included.

        Raises what `Graph.run` and `load_graph` raise (MODEL_OUT_OF_MEMORY where the bound stopped one allocation),
        `DeadlineExceeded` DEADLINE_EXCEEDED, and `Unprocessable` WORKER_OUT_OF_MEMORY or WORKER_KILLED when the graph
        took its child down.
        """
        limit_s = (DEFAULT_DEADLINE_MS if deadline_ms is None else deadline_ms) / 1000
        until = time.monotonic() + limit_s
        if not self._lock.acquire(timeout=max(0.0, limit_s)):
            raise _deadline(limit_s)
        try:
            process = self._child()
            left_ms = (until - time.monotonic()) * 1000
            if left_ms <= 0:  # spent waiting for the run before this one, or for a new child
                raise _deadline(limit_s)
            bound = MAX_ANSWER_BYTES if max_output_bytes is None else max_output_bytes
            request = {"outputs": None if outputs is None else list(outputs), "deadline_ms": left_ms,
                       "max_output_bytes": bound}  # fmt: skip
            try:
                header, arrays = self._exchange(process, request, inputs, until + GRACE_S, bound)
            except TimeoutError:
                self._kill()
                raise _deadline(limit_s) from None
            except (OSError, EOFError, ValueError, KeyError, TypeError):  # gone, or no longer speaking as it should
                raise self._death() from None
            if "refusal" in header:
                raise _refusal_of(header["refusal"])
            return arrays
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._kill()

    # --- the child's life ---------------------------------------------------------------------------------------------

    def _child(self) -> subprocess.Popen[bytes]:
        """The living child, started (and its graph loaded) where there is none."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        root = str(Path(__file__).resolve().parents[1])
        environment |= {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        held, self._lifeline = os.pipe()
        arguments = [str(self._path), str(self._memory_bytes), str(held), *self._adapter]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "model_store.worker", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                pass_fds=(held,),
            )  # fmt: skip
        except OSError as error:
            self._drop_lifeline()
            raise _no_child(error) from error
        finally:
            os.close(held)
        try:
            header, _ = _receive(self._process, time.monotonic() + START_TIMEOUT_S)
        except (OSError, EOFError, ValueError, TimeoutError):
            raise self._death() from None
        if "refusal" in header:
            self._kill()
            raise _refusal_of(header["refusal"])
        self.isolated = bool(header.get("isolated"))
        return self._process

    def _exchange(
        self,
        process: subprocess.Popen[bytes],
        request: dict[str, Any],
        inputs: Mapping[str, Array],
        until: float,
        max_bytes: int,
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Write in a thread: a child that does not read must not hold us past the deadline."""
        assert process.stdin is not None
        failed: list[BaseException] = []

        def write(stream: IO[bytes]) -> None:
            try:
                _send(stream, request, inputs)
            except (OSError, ValueError) as error:
                failed.append(error)

        writer: threading.Thread | None = None
        size = sum(tensor_bytes(array) + 4 * array.size for array in inputs.values())
        if size < 32_768 and len(inputs) < 64:  # fits in a pipe: cannot block
            write(process.stdin)
        else:
            writer = threading.Thread(target=write, args=(process.stdin,), daemon=True)
            writer.start()
        answer = _receive(process, until, max_bytes)
        if writer is not None:
            writer.join(1)
        return answer

    def _kill(self) -> int:
        process, self._process = self._process, None
        self._drop_lifeline()
        if process is None:
            return 0
        if process.poll() is None:
            process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return status

    def _drop_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def _death(self) -> Refusal:
        """Why the child is gone, as a refusal; what is left of it is cleared away."""
        status: int | None = None  # None: it lives, but no longer speaks as it should
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(2)
        self._kill()
        if status in (OUT_OF_MEMORY_STATUS, -signal.SIGKILL):
            return Unprocessable(
                "WORKER_OUT_OF_MEMORY",
                zh=f"模型用尽了允许的内存 ({self._memory_bytes >> 20} MiB), 已终止",
                en=f"the model used up the memory it is allowed ({self._memory_bytes >> 20} MiB) and was ended",
                remedy_zh="请减小输入或模型; 未经审核的模型在受限进程中运行",
                remedy_en="make the input or the model smaller; unreviewed models run in a limited process",
                field="model",
            )
        return Unprocessable(
            "WORKER_KILLED",
            zh=f"模型在受限进程中崩溃 (状态 {status})",
            en=f"the model crashed in its limited process (status {status})",
            remedy_zh="请在本地用 onnxruntime 运行该模型并检查",
            remedy_en="run the model locally with onnxruntime and check it",
            field="model",
        )


# --- frames -----------------------------------------------------------------------------------------------------------


def _send(stream: IO[bytes], header: dict[str, Any], arrays: Mapping[str, Array]) -> None:
    described, bodies = [], []
    for name, array in arrays.items():
        oip = oip_of_array(array)
        if oip == "BYTES":
            items = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
            body = b"".join(_LENGTH.pack(len(item)) + item for item in items)
        else:
            body = np.ascontiguousarray(array).tobytes()
        described.append({"name": name, "dtype": oip, "shape": list(array.shape), "bytes": len(body)})
        bodies.append(body)
    head = json.dumps({**header, "tensors": described}).encode()
    stream.write(_LENGTH.pack(len(head)) + head + b"".join(bodies))
    stream.flush()


def _receive(
    process: subprocess.Popen[bytes], until: float, max_bytes: int = 0
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One frame from the child. `TimeoutError` past `until`, `EOFError` if it is gone, `ValueError` over the bound."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)

        def exactly(count: int) -> bytes:
            parts: list[bytes] = []
            while count:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                part = os.read(fd, min(count, 1 << 20))
                if not part:
                    raise EOFError
                parts.append(part)
                count -= len(part)
            return b"".join(parts)

        return _read_frame(exactly, max_bytes)


def _read_frame(exactly: Callable[[int], bytes], max_bytes: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """`max_bytes` bounds the tensors, four bytes an element of BYTES apart."""
    (size,) = _LENGTH.unpack(exactly(4))
    if size > MAX_HEADER_BYTES:
        raise ValueError("header too long")
    header: dict[str, Any] = json.loads(exactly(size))
    arrays = {}
    announced = sum(_announced(tensor) for tensor in header.get("tensors", []))
    if announced > max_bytes:
        raise ValueError("tensors too large")
    for tensor in header.get("tensors", []):
        body = exactly(int(tensor["bytes"]))
        shape = tuple(int(side) for side in tensor["shape"])
        arrays[str(tensor["name"])] = (
            object_array(_split(body), shape)
            if tensor["dtype"] == "BYTES"
            else np.frombuffer(body, NUMPY_OF[tensor["dtype"]]).reshape(shape)
        )
    return header, arrays


def _announced(tensor: Mapping[str, Any]) -> int:
    size, lengths = int(tensor["bytes"]), 4 * math.prod(int(side) for side in tensor["shape"])
    if size < 0 or lengths < 0:
        raise ValueError("negative size")
    return size - lengths if tensor["dtype"] == "BYTES" else size


def _split(body: bytes) -> list[bytes | str]:
    items: list[bytes | str] = []
    at = 0
    while at < len(body):
        (size,) = _LENGTH.unpack_from(body, at)
        items.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return items


def _refusal_of(data: Mapping[str, Any]) -> Refusal:
    kind = _KINDS.get(str(data.get("kind")), Unprocessable)
    return kind(
        str(data.get("code")), zh=str(data.get("message_zh")), en=str(data.get("message")),
        remedy_zh=str(data.get("remedy_zh")), remedy_en=str(data.get("remedy")), field=data.get("field"),
    )  # fmt: skip


def _no_child(error: OSError) -> Unavailable:
    return Unavailable(
        "WORKER_UNAVAILABLE",
        zh=f"无法启动受限进程: {error.strerror}",
        en=f"a limited process cannot be started: {error.strerror}",
        remedy_zh="请稍后重试",
        remedy_en="try again shortly",
        field="model",
        retry_after_s=1,
    )


def _deadline(limit_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        "DEADLINE_EXCEEDED",
        zh=f"运行超过时限 {limit_s * 1000:.0f} 毫秒, 已终止",
        en=f"the run took longer than its deadline of {limit_s * 1000:.0f} ms and was ended",
        remedy_zh="请减小输入, 或检查模型中的循环",
        remedy_en="make the input smaller, or check the model's loops",
        field="model",
    )


# --- the child --------------------------------------------------------------------------------------------------------


def main() -> None:
    """`python -m model_store.worker MODEL MEMORY_BYTES LIFELINE_FD [ADAPTER]`: bound this process, load the graph,
    answer runs until EOF."""
    from model_store.inspection.sandbox import leave_network, mapped_bytes

    isolated = leave_network()
    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[3]),), daemon=True).start()
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not spoil a frame
    from model_store.adapter_file import parameters_for
    from model_store.runtime import load_graph

    space = mapped_bytes() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def exactly(count: int) -> bytes:
        content = stdin.read(count)
        if len(content) < count:
            raise EOFError
        return content

    try:
        graph = load_graph(Path(sys.argv[1]), threads=1, trusted=False)
        if len(sys.argv) > 4:
            graph.bind(parameters_for(graph, Path(sys.argv[4])))
    except Refusal as refusal:
        _send(stdout, {"refusal": _as_data(refusal)}, {})
        return
    _send(stdout, {"isolated": isolated}, {})
    while True:
        try:
            header, inputs = _read_frame(exactly, sys.maxsize)
        except EOFError:
            return
        try:
            result = graph.run(inputs, header["outputs"], header["deadline_ms"], header["max_output_bytes"])
        except MemoryError:
            os._exit(OUT_OF_MEMORY_STATUS)
        except Refusal as refusal:
            _send(stdout, {"refusal": _as_data(refusal)}, {})
            continue
        _send(stdout, {}, result)


def _end_with_parent(lifeline: int) -> None:
    """Not PR_SET_PDEATHSIG: that follows the *thread* that started us, and ours come and go."""
    os.read(lifeline, 1)
    os._exit(0)


def _as_data(refusal: Refusal) -> dict[str, Any]:
    return {**refusal.as_dict(), "kind": type(refusal).__name__}


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(OUT_OF_MEMORY_STATUS)
