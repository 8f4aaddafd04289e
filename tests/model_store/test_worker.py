"""The limited worker: what a bomb does to itself, and what it does not do to others."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from model_store.errors import BadInput, DeadlineExceeded, Refusal, TooLarge, Unprocessable
from model_store.tensors import object_array
from model_store.worker import LimitedWorker
from tests.model_store import graphs

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
ZERO = np.zeros(1, np.float32)
MIB = 1 << 20


@pytest.fixture
def worker_of(tmp_path: Path) -> Iterator[Callable[..., LimitedWorker]]:
    started: list[LimitedWorker] = []

    def start(make: Callable[..., Path], *args: object, memory_bytes: int = 512 * MIB) -> LimitedWorker:
        path = make(tmp_path / f"{len(started)}.onnx", *args)
        started.append(LimitedWorker(path, memory_bytes))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def child_of(worker: LimitedWorker) -> int:
    assert worker._process is not None
    return worker._process.pid


def code_of(error: pytest.ExceptionInfo[Refusal]) -> str:
    assert error.value.zh
    assert error.value.remedy_zh
    return error.value.code


def test_the_answer_is_the_same_as_in_process(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    assert worker.run({"x": X})["y"].tolist() == [[6.5], [15.5]]
    assert worker.run({"x": X}, outputs=["y"])["y"].tolist() == [[6.5], [15.5]]


@pytest.mark.parametrize(
    ("elem", "array"),
    [
        (TensorProto.STRING, object_array(["轴承".encode(), b"", b"a\x00b"], [3])),
        (TensorProto.STRING, object_array([b""] * 40_000, [40_000])),
        (TensorProto.BFLOAT16, np.arange(3).astype(ml_dtypes.bfloat16)),
        (TensorProto.BOOL, np.zeros(0, np.bool_)),
        (TensorProto.FLOAT, np.arange(3_000_000, dtype=np.float32)),
    ],
)
def test_every_kind_and_size_of_tensor_crosses_unchanged(
    worker_of: Callable[..., LimitedWorker], elem: int, array: np.ndarray
) -> None:
    answer = worker_of(graphs.identity, elem).run({"x": array})["y"]
    assert answer.dtype == array.dtype
    assert answer.tolist() == array.tolist()


def test_a_refusal_comes_back_as_it_was_raised_and_the_child_lives_on(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    before = child_of(worker)
    with pytest.raises(BadInput) as error:
        worker.run({"x": X[:, :2]})
    assert code_of(error) == "TENSOR_SHAPE"
    assert error.value.field == "x"
    assert worker.run({"x": X})["y"].shape == (2, 1)
    assert child_of(worker) == before


def test_an_endless_loop_is_ended_at_its_deadline(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.endless_loop)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded) as error:
            worker.run({"x": ZERO}, deadline_ms=1_500)
        assert code_of(error) == "DEADLINE_EXCEEDED"


def test_a_child_that_does_not_listen_is_killed_and_replaced(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    stuck = child_of(worker)
    os.kill(stuck, signal.SIGSTOP)  # as deaf as a kernel that never returns
    with pytest.raises(DeadlineExceeded):
        worker.run({"x": X}, deadline_ms=50)
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    assert worker.run({"x": X})["y"].shape == (2, 1)


def test_a_large_request_to_a_deaf_child_ends_too(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.identity)
    worker.run({"x": ZERO})
    os.kill(child_of(worker), signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        worker.run({"x": np.zeros(1_000_000, np.float32)}, deadline_ms=50)
    assert worker.run({"x": ZERO})["y"].tolist() == [0]


@pytest.mark.parametrize("shape", [[1 << 16, 1 << 16], [1 << 40], [1 << 31, 1 << 31, 4]])
def test_a_memory_bomb_is_refused_and_the_next_call_answered(
    worker_of: Callable[..., LimitedWorker], shape: list[int]
) -> None:
    worker = worker_of(graphs.memory_bomb)
    with pytest.raises(Unprocessable) as error:
        worker.run({"shape": np.array(shape)})
    assert code_of(error) in ("MODEL_OUT_OF_MEMORY", "WORKER_OUT_OF_MEMORY", "MODEL_RUN_FAILED")
    assert worker.run({"shape": np.array([10, 10])})["y"] == 100


def test_a_graph_that_outgrows_its_memory_with_its_answer_dies_alone(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.wide_output, memory_bytes=256 * MIB)
    with pytest.raises(Refusal) as error:
        worker.run({"shape": np.array([40, MIB])})  # 160 MiB of answer: it fits once, not twice
    assert code_of(error) == "WORKER_OUT_OF_MEMORY"
    assert worker.run({"shape": np.array([3])})["y"].shape == (3,)


def test_an_answer_over_its_bound_never_reaches_us(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.wide_output)
    with pytest.raises(TooLarge) as error:
        worker.run({"shape": np.array([1000])}, max_output_bytes=3_999)
    assert code_of(error) == "OUTPUT_TOO_LARGE"


def test_a_child_that_crashes_says_so_and_is_replaced(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.endless_loop)
    with pytest.raises(BadInput):
        worker.run({})  # starts the child
    victim = child_of(worker)
    threading.Timer(0.2, os.kill, (victim, signal.SIGSEGV)).start()
    with pytest.raises(Unprocessable) as error:
        worker.run({"x": ZERO}, deadline_ms=60_000)
    assert code_of(error) == "WORKER_KILLED"
    with pytest.raises(BadInput):
        worker.run({})
    assert child_of(worker) != victim


def test_a_graph_that_does_not_load_is_refused_each_time(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x80\x04K\x01.")
    worker = LimitedWorker(tmp_path / "m.onnx")
    for _ in range(2):
        with pytest.raises(Unprocessable) as error:
            worker.run({})
        assert code_of(error) == "MODEL_LOAD_FAILED"
    assert worker._process is None


def test_one_graphs_bomb_does_not_disturb_another_graphs_calls(worker_of: Callable[..., LimitedWorker]) -> None:
    bomb, loop, honest = worker_of(graphs.memory_bomb), worker_of(graphs.endless_loop), worker_of(graphs.linear)
    honest.run({"x": X})
    stop, failures = threading.Event(), []

    def misbehave(worker: LimitedWorker, inputs: dict[str, np.ndarray]) -> None:
        while not stop.is_set():
            with pytest.raises(Refusal):
                worker.run(inputs, deadline_ms=500)

    villains = [
        threading.Thread(target=misbehave, args=(bomb, {"shape": np.array([1 << 40])})),
        threading.Thread(target=misbehave, args=(loop, {"x": ZERO})),
    ]
    for each in villains:
        each.start()
    for _ in range(200):
        try:
            assert honest.run({"x": X})["y"].tolist() == [[6.5], [15.5]]
        except Refusal as refusal:
            failures.append(refusal)
    stop.set()
    for each in villains:
        each.join()
    assert failures == []


def test_calls_from_many_threads_wait_for_each_other(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    answers: list[float] = []

    def call(number: int) -> None:
        x = np.full((1, 3), number, np.float32)
        answers.extend(worker.run({"x": x})["y"][0].tolist())

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [3 * number + 0.5 for number in range(16)]


def test_a_child_has_no_network_where_the_system_allows_it(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    ours, theirs = (os.readlink(f"/proc/{pid}/ns/net") for pid in (os.getpid(), child_of(worker)))
    assert worker.isolated == (ours != theirs)
    allowed = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    assert worker.isolated or not allowed


def test_a_child_gives_way_to_the_process_that_answers_calls(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    ours, theirs = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, child_of(worker)))
    assert theirs == min(19, ours + 5)


def test_a_child_keeps_nothing_of_our_environment(
    worker_of: Callable[..., LimitedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALGOMART_SECRET", "of the market")
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    assert b"ALGOMART_SECRET" not in Path(f"/proc/{child_of(worker)}/environ").read_bytes()


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    graphs.linear(tmp_path / "m.onnx")
    script = (
        "import os, sys, numpy as np; from pathlib import Path; from model_store.worker import LimitedWorker\n"
        f"worker = LimitedWorker(Path({str(tmp_path / 'm.onnx')!r}))\n"
        "worker.run({'x': np.ones((1, 3), np.float32)}); print(worker._process.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    while Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z"):
            break
        threading.Event().wait(0.01)


def test_closing_ends_the_child_and_the_next_call_starts_another(worker_of: Callable[..., LimitedWorker]) -> None:
    worker = worker_of(graphs.linear)
    worker.run({"x": X})
    before = child_of(worker)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    worker.run({"x": X})
    assert child_of(worker) != before


def test_a_path_with_spaces_and_chinese_is_loaded(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    vector = [graphs.value(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    worker = LimitedWorker(graphs.save(tmp_path / "带空格 的.onnx", [node], vector[:1], vector[1:]))
    assert worker.run({"x": ZERO + 2})["y"].tolist() == [4]
    worker.close()
