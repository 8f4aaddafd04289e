"""The runtime: right answers, precise refusals, and runs that end when they are told to."""

import json
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import BadInput, DeadlineExceeded, TooLarge, Unprocessable
from model_store.golden import read_golden_folder
from model_store.runtime import load_graph
from model_store.tensors import NUMPY_OF, object_array
from model_store.watchdog import Watchdog
from tests.model_store import graphs

CASES = Path(__file__).parents[3] / "shared" / "data" / "onnx_cases"
X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def test_a_graph_tells_its_tensors_and_runs(tmp_path: Path) -> None:
    graph = load_graph(graphs.linear(tmp_path / "m.onnx"))
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.inputs] == [("x", "FP32", [-1, 3])]
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.outputs] == [("y", "FP32", [-1, 1])]
    assert graph.run({"x": X})["y"].tolist() == [[6.5], [15.5]]


@pytest.mark.parametrize("options", [{"prepack": False}, {"threads": 2}, {"trusted": False}])
def test_every_way_of_loading_gives_the_same_answer(tmp_path: Path, options: dict[str, bool]) -> None:
    assert load_graph(graphs.linear(tmp_path / "m.onnx"), **options).run({"x": X})["y"].tolist() == [[6.5], [15.5]]


ONNX_OF = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
}  # fmt: skip


@pytest.mark.parametrize("oip", ONNX_OF)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 1), (2, 2)])
def test_every_type_and_shape_goes_through_unchanged(tmp_path: Path, oip: str, shape: tuple[int, ...]) -> None:
    graph = load_graph(graphs.identity(tmp_path / "m.onnx", ONNX_OF[oip], [f"d{i}" for i in range(len(shape))]))
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(NUMPY_OF[oip])
    answer = graph.run({"x": array})["y"]
    assert graph.inputs[0].dtype == oip
    assert (answer.dtype, answer.shape) == (array.dtype, array.shape)
    assert answer.tobytes() == array.tobytes()


def test_bytes_cross_as_text_and_come_back_as_bytes(tmp_path: Path) -> None:
    graph = load_graph(graphs.identity(tmp_path / "m.onnx", TensorProto.STRING, ["n", "k"]))
    array = object_array(["轴承".encode(), b"", b"a\x00b", b"b'x'"], [2, 2])
    answer = graph.run({"x": array})["y"]
    assert answer.tolist() == array.tolist()
    assert graph.run({"x": np.array([["中", "b"]])})["y"].tolist() == [["中".encode(), b"b"]]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    graph = load_graph(graphs.identity(tmp_path / "m.onnx", TensorProto.STRING))
    with pytest.raises(BadInput) as error:
        graph.run({"x": object_array([b"ok", b"\xff"], [2])})
    assert (error.value.code, error.value.field) == ("TENSOR_NOT_UTF8", "x")


@pytest.mark.parametrize(
    ("inputs", "code", "field"),
    [
        ({"x": X, "z": X}, "TENSOR_UNKNOWN", "z"),
        ({}, "TENSOR_MISSING", "x"),
        ({"x": X.astype(np.float64)}, "TENSOR_DTYPE", "x"),
        ({"x": X.astype(">f4")}, "TENSOR_DTYPE", "x"),
        ({"x": X[0]}, "TENSOR_SHAPE", "x"),
        ({"x": X[:, :2]}, "TENSOR_SHAPE", "x"),
    ],
)
def test_a_wrong_input_is_named(tmp_path: Path, inputs: dict[str, np.ndarray], code: str, field: str) -> None:
    graph = load_graph(graphs.linear(tmp_path / "m.onnx"))
    with pytest.raises(BadInput) as error:
        graph.run(inputs)
    assert (error.value.code, error.value.field) == (code, field)
    assert error.value.remedy_zh


def test_a_wrong_shape_says_what_was_expected_and_what_came(tmp_path: Path) -> None:
    graph = load_graph(graphs.linear(tmp_path / "m.onnx"))
    with pytest.raises(BadInput) as error:
        graph.run({"x": X[:, :2]})
    assert error.value.details == {"expected": [-1, 3], "got": [2, 2]}


def test_only_the_outputs_asked_for_are_answered(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    vector = [graphs.value(name, TensorProto.FLOAT, ["n"]) for name in "xab"]
    graph = load_graph(graphs.save(tmp_path / "m.onnx", nodes, vector[:1], vector[1:]))
    assert list(graph.run({"x": np.ones(1, np.float32)}, ["b"])) == ["b"]
    with pytest.raises(BadInput) as error:
        graph.run({"x": np.ones(1, np.float32)}, ["c"])
    assert error.value.code == "OUTPUT_UNKNOWN"


def test_an_initializer_that_is_an_input_may_be_overridden(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    vector = [graphs.value(name, TensorProto.FLOAT, ["n"]) for name in ("x", "w", "y")]
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    graph = load_graph(graphs.save(tmp_path / "m.onnx", nodes, vector[:2], vector[2:], [weight]))
    one = np.ones(1, np.float32)
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert graph.run({"x": one})["y"].tolist() == [2]
    assert graph.run({"x": one, "w": one * 9})["y"].tolist() == [10]


def test_an_endless_loop_is_ended_at_its_deadline_and_the_graph_lives_on(tmp_path: Path) -> None:
    graph = load_graph(graphs.endless_loop(tmp_path / "m.onnx"))
    for _ in range(2):
        with pytest.raises(DeadlineExceeded) as error:
            graph.run({"x": np.zeros(1, np.float32)}, deadline_ms=60)
        assert error.value.code == "DEADLINE_EXCEEDED"


def test_a_deadline_that_has_passed_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        load_graph(graphs.linear(tmp_path / "m.onnx")).run({"x": X}, deadline_ms=0)


def test_many_threads_with_deadlines_share_one_watchdog(tmp_path: Path) -> None:
    quick, slow = load_graph(graphs.linear(tmp_path / "a.onnx")), load_graph(graphs.endless_loop(tmp_path / "b.onnx"))
    outcomes: list[str] = []

    def call(number: int) -> None:
        try:
            if number % 3:
                quick.run({"x": X}, deadline_ms=60_000)
                outcomes.append("answered")
            else:
                slow.run({"x": np.zeros(1, np.float32)}, deadline_ms=30)
        except DeadlineExceeded:
            outcomes.append("ended")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered"] * 8 + ["ended"] * 4
    assert sum(thread.name == "run-watchdog" for thread in threading.enumerate()) == 1


def test_a_forgotten_ticket_is_never_terminated() -> None:
    class Options:
        terminate = False

    watchdog, forgotten, kept = Watchdog(), Options(), Options()
    watchdog.forget(watchdog.watch(forgotten, at=0.0) + 1)  # another's ticket: no effect on anyone
    ticket = watchdog.watch(kept, at=float("inf"))
    while not forgotten.terminate:
        threading.Event().wait(0.001)
    watchdog.forget(ticket)
    assert not kept.terminate


def test_a_run_is_given_the_time_in_which_the_process_stood_still() -> None:
    class Options:
        terminate = False

    watchdog, watched = Watchdog(), Options()
    with watchdog._lock:  # its thread cannot work, as in a process that was stopped
        watchdog._watched[1] = (time.monotonic() + 0.1, watched)
        watchdog._wakes_at = time.monotonic() + 0.1
        thread = watchdog._thread = threading.Thread(target=watchdog._watch, daemon=True)
        thread.start()
        time.sleep(1.2)
    while watchdog._wakes_at < time.monotonic():  # it has not looked yet
        time.sleep(0.001)
    assert not watched.terminate
    while not watched.terminate:  # but it is, in the end
        time.sleep(0.01)


def test_an_output_over_its_bound_is_refused(tmp_path: Path) -> None:
    graph = load_graph(graphs.wide_output(tmp_path / "m.onnx"))
    with pytest.raises(TooLarge) as error:
        graph.run({"shape": np.array([1000])}, max_output_bytes=3999)
    assert (error.value.code, error.value.field) == ("OUTPUT_TOO_LARGE", "y")
    assert graph.run({"shape": np.array([1000])}, max_output_bytes=4000)["y"].shape == (1000,)


def test_an_input_that_the_graph_cannot_take_is_a_refusal_without_our_paths(tmp_path: Path) -> None:
    graph = load_graph(graphs.wide_output(tmp_path / "m.onnx"))
    with pytest.raises(Unprocessable) as error:
        graph.run({"shape": np.array([-5, 3])})
    assert error.value.code == "MODEL_RUN_FAILED"
    assert "onnxruntime_src" not in error.value.en


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04K\x01.", b"ORTM" * 20])
def test_what_is_no_graph_is_refused_without_our_paths(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(Unprocessable) as error:
        load_graph(tmp_path / "m.onnx")
    assert error.value.code == "MODEL_LOAD_FAILED"
    assert str(tmp_path) not in error.value.en


def test_a_graph_of_custom_operators_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Exec", ["x"], ["y"], domain="evil")
    vector = [graphs.value(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    with pytest.raises(Unprocessable) as error:
        load_graph(graphs.save(tmp_path / "m.onnx", [node], vector[:1], vector[1:]))
    assert error.value.code == "MODEL_LOAD_FAILED"


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../w.bin")
    vector = [graphs.value(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    path = graphs.save(tmp_path / "b" / "m.onnx", [node], vector[:1], vector[1:], [weight])
    with pytest.raises(Unprocessable) as error:
        load_graph(path)
    assert error.value.code == "MODEL_LOAD_FAILED"


def test_importing_the_runtime_switches_telemetry_off() -> None:
    script = "import model_store.runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.skipif(not CASES.exists(), reason="../shared/data is not here")
def test_real_backend_cases_give_their_expected_outputs(tmp_path: Path) -> None:
    with tarfile.open(CASES / "cases.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for case in json.loads((CASES / "cases.json").read_text())["cases"][::5]:
        folder = tmp_path / case["path"]
        graph = load_graph(folder / "model.onnx")
        names = [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]
        (pair,) = read_golden_folder(folder, *names)
        answer = graph.run(pair.inputs, deadline_ms=60_000)
        for name, expected in pair.outputs.items():
            assert (answer[name].dtype, answer[name].shape) == (expected.dtype, expected.shape), case["name"]
            if expected.dtype == object:
                assert answer[name].tolist() == expected.tolist(), case["name"]
            else:
                got, want = (a.astype(np.float64) if a.dtype.kind in "fV" else a for a in (answer[name], expected))
                np.testing.assert_allclose(got, want, rtol=case["rtol"], atol=case["atol"], err_msg=case["name"])


def test_bfloat16_is_two_bytes() -> None:
    assert NUMPY_OF["BF16"] == np.dtype(ml_dtypes.bfloat16)
    assert NUMPY_OF["BF16"].itemsize == 2
