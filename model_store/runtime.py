"""How a graph is run: ONNX Runtime on the CPU, with the settings that many small models on one box need.

Measured on 1.32 with two cores (../shared/design/serving.md, and 60 small sessions here): one thread a session loads 40
times and runs 20 times faster than the default; the arena and memory patterns cost memory that grows with every new
shape (22 MB against 12 MB) and gain no time, so both are off. Mapped, un-prepacked weights (`prepack=False`) load at
once and cost almost no private memory, at 17% slower runs.

No custom-operator library is ever registered: a graph has the operators that ONNX Runtime ships, or it does not load.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from model_store.adapter_sites import read_sites
from model_store.errors import Refusal, Unprocessable
from model_store.manifest import TensorSpec
from model_store.ort import onnxruntime
from model_store.run_refusals import (
    brief,
    check_output_bytes,
    deadline_exceeded,
    output_unknown,
    run_failed,
    tensor_dtype,
    tensor_missing,
    tensor_shape,
    tensor_unknown,
)
from model_store.tensors import (
    NUMPY_OF,
    ONNX_BFLOAT16,
    Array,
    from_ort_strings,
    oip_of_ort_type,
    to_ort_strings,
)
from model_store.watchdog import Watchdog

ORT_VERSION: str = onnxruntime.__version__
_FATAL_ONLY = 4
# ONNX Runtime's own exceptions derive from Exception one by one; what its Python side raises is of the usual kinds.
_FAILURES: tuple[type[BaseException], ...] = (
    *(
        kind
        for kind in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)


def load_graph(model_path: Path, threads: int = 1, prepack: bool = True, trusted: bool = True) -> Graph:
    """Load `model_path` (external weights lie beside it). Releases the GIL while it works.

    `trusted=False` folds no constants: loading then runs no operator of a graph that nobody has reviewed.
    Raises `Unprocessable` MODEL_LOAD_FAILED, TENSOR_TYPE_UNSUPPORTED.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = _FATAL_ONLY  # a failing run is a refusal to the caller, not a line on our stderr
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores alone
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.load_model_format", "ONNX"
    )  # never the .ort format, which nobody inspected
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(model_path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=None if trusted else ["ConstantFolding"],
        )
    except _FAILURES as error:
        raise Unprocessable(
            "MODEL_LOAD_FAILED",
            zh=f"ONNX Runtime 无法加载模型: {brief(error, model_path)}",
            en=f"ONNX Runtime cannot load the model: {brief(error, model_path)}",
            remedy_zh=f"请用 ONNX Runtime {ORT_VERSION} 支持的标准算子重新导出模型",
            remedy_en=f"export the model again with standard operators that ONNX Runtime {ORT_VERSION} has",
            field="model.onnx",
        ) from error
    return Graph(session)


class Graph:
    """A loaded graph. `run` may be called from any thread, and from several at once.

    `inputs`, `outputs`: the graph's own tensors in order; -1 is a dynamic dimension, and `[]` is a scalar *or* unknown
    (ONNX Runtime does not tell them apart). `overridable`: initializers that a run may override; a caller may
    feed those that are not of the graph's adapter `sites` (None: it has none).
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        # Past the wrapper around it: that checks names and owners (as `_check` has), and would try another provider.
        self._run_session = session._sess.run
        self.inputs = [_spec(argument) for argument in session.get_inputs()]
        self.outputs = [_spec(argument) for argument in session.get_outputs()]
        self.overridable = [_spec(argument) for argument in session.get_overridable_initializers()]
        self.sites = read_sites(session.get_modelmeta().custom_metadata_map, self.overridable)
        closed = self.sites.parameters if self.sites is not None else frozenset()
        feeds = [*self.inputs, *(spec for spec in self.overridable if spec.name not in closed)]
        self._expected = {spec.name: (NUMPY_OF[spec.dtype], tuple(spec.shape), spec) for spec in feeds}
        self._required = frozenset(spec.name for spec in self.inputs)
        self._output_names = [spec.name for spec in self.outputs]
        self._output_types = {spec.name: spec.dtype for spec in self.outputs}
        self._string_inputs = frozenset(spec.name for spec in feeds if spec.dtype == "BYTES")
        self._has_strings_out = "BYTES" in self._output_types.values()
        self._has_bfloat16 = any(spec.dtype == "BF16" for spec in [*feeds, *self.outputs])
        self._free_options = run_options()
        self._bound: dict[str, Array] = {}

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
        *,
        adapter: ActiveAdapter | None = None,
        bound: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Run once and return the named outputs (all by default), BYTES as object arrays of `bytes`.

        `deadline_ms` counts from now; past it the run is told to end, which it does between two operators. `adapter`:
        of these sites; `bound`: parameters of the sites that the server itself feeds, passed on unchecked. Raises
        `BadInput` TENSOR_UNKNOWN, TENSOR_MISSING, TENSOR_DTYPE, TENSOR_SHAPE, TENSOR_NOT_UTF8, OUTPUT_UNKNOWN;
        `DeadlineExceeded` DEADLINE_EXCEEDED; `TooLarge` OUTPUT_TOO_LARGE; `Unprocessable` MODEL_RUN_FAILED,
        MODEL_OUT_OF_MEMORY.
        """
        feeds = self._check(inputs)
        feeds.update(self._bound if bound is None else bound)
        names = self._output_names if outputs is None else self._check_outputs(outputs)
        if deadline_ms is None:
            values = self._run(names, feeds, self._free_options if adapter is None else adapter.options)
        else:
            if deadline_ms <= 0:
                raise deadline_exceeded(deadline_ms)
            options = run_options() if adapter is None else adapter.own_options()
            ticket = _WATCHDOG.watch(options, time.monotonic() + deadline_ms / 1000)
            try:
                values = self._run(names, feeds, options)
            except Unprocessable as error:
                if options.terminate:
                    raise deadline_exceeded(deadline_ms) from error
                raise
            finally:
                _WATCHDOG.forget(ticket)
        answer = dict(zip(names, values, strict=True))
        if self._has_strings_out:
            for name in names:
                if self._output_types[name] == "BYTES":
                    answer[name] = from_ort_strings(answer[name])
        if max_output_bytes is not None:
            check_output_bytes(answer, max_output_bytes)
        return answer

    def adopt(self, other: Graph) -> Any:
        """From now on runs are those of `other`, a load of the very same model; what runs already ends as it began.

        Answers the session that was left, so that the caller may drop it where that holds nobody up.
        """
        left, self._session, self._run_session = self._session, other._session, other._run_session
        return left

    def bind(self, parameters: Mapping[str, Array]) -> None:
        """From now on every run takes these parameters of the sites: for a graph that serves one adapter only."""
        self._bound = dict(parameters)

    def check_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Raise the `BadInput` that `run` would raise for names, types and shapes; nothing is run."""
        self._check(inputs)

    def _check(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        for name, array in inputs.items():
            found = self._expected.get(name)
            if found is None:
                raise tensor_unknown(name, list(self._expected))
            dtype, shape, spec = found
            if array.dtype != dtype and not (spec.dtype == "BYTES" and array.dtype.kind in "SU"):
                raise tensor_dtype(spec, array)
            if shape and not _fits(array.shape, shape):
                raise tensor_shape(spec, array.shape)
            feeds[name] = to_ort_strings(array, name) if name in self._string_inputs else array
        for name in self._required:
            if name not in feeds:
                raise tensor_missing(self._expected[name][2], list(inputs))
        return feeds

    def _check_outputs(self, outputs: Sequence[str]) -> list[str]:
        for name in outputs:
            if name not in self._output_types:
                raise output_unknown(name, self._output_names)
        return list(outputs) or self._output_names

    def _run(self, names: list[str], feeds: dict[str, Array], options: Any) -> list[Array]:
        try:
            if self._has_bfloat16:
                return _run_with_values(self._session, names, feeds, options)
            values: list[Array] = self._run_session(names, feeds, options)
            return values
        except Refusal:
            raise
        except _FAILURES as error:
            raise run_failed(error) from error


def run_options() -> Any:
    """Options for runs that fail in silence: a failure is a refusal to the caller."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


class ActiveAdapter:
    """An adapter file loaded for runs of its base's graph (`Graph.run(adapter=…)`), from any thread.

    It holds file and options together: a run whose adapter was collected would answer with the base, silently.
    """

    def __init__(self, path: Path) -> None:
        """Raises `Unprocessable` ADAPTER_LOAD_FAILED. Whether it fits the base was checked when it was uploaded."""
        self._adapter = onnxruntime.LoraAdapter()
        try:
            self._adapter.Load(os.fspath(path))
        except _FAILURES as error:
            raise Unprocessable(
                "ADAPTER_LOAD_FAILED",
                zh=f"ONNX Runtime 无法加载适配器: {brief(error, path)}",
                en=f"ONNX Runtime cannot load the adapter: {brief(error, path)}",
                remedy_zh="请重新导出适配器",
                remedy_en="write the adapter again",
                field=path.name,
            ) from error
        self.options = self.own_options()

    def own_options(self) -> Any:
        """Options for one run that can be ended by itself. They cannot drop the adapter again."""
        options = run_options()
        options.add_active_adapter(self._adapter)
        return options


def _run_with_values(session: Any, names: list[str], feeds: dict[str, Array], options: Any) -> list[Array]:
    """numpy has no bfloat16 that ONNX Runtime knows, so these tensors cross as raw OrtValues."""
    values = {}
    for name, array in feeds.items():
        if array.dtype == ml_dtypes.bfloat16:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(array).reshape(array.shape), ONNX_BFLOAT16
            )
        else:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    results = session.run_with_ort_values(names, values, options)
    return [_array_of_value(value) for value in results]


def _array_of_value(value: Any) -> Array:
    if value.element_type() != ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64))
    content = ctypes.string_at(value.data_ptr(), 2 * size) if size else b""
    return np.frombuffer(content, dtype=ml_dtypes.bfloat16).reshape(shape).copy()


_WATCHDOG = Watchdog()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Looked up once: every `CDLL` makes classes of its own."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another libc
        return None


def release_memory() -> bool:
    """Give freed memory back to the system (glibc's `malloc_trim`); without it an unloaded graph stays resident."""
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


def _fits(got: Sequence[int], expected: Sequence[int]) -> bool:
    if len(got) != len(expected):
        return False
    for have, want in zip(got, expected, strict=True):  # noqa: SIM110 (a generator takes twice as long, on every call)
        if want not in (-1, have):
            return False
    return True


def _spec(argument: Any) -> TensorSpec:
    shape = [size if isinstance(size, int) and size >= 0 else -1 for size in argument.shape or []]
    return TensorSpec(name=argument.name, dtype=oip_of_ort_type(argument.type, argument.name), shape=shape)
