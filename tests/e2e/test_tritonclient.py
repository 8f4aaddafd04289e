"""The real `tritonclient.http`, sync and aio: the numbers of ONNX Runtime in this process, on the same tensors.

Seven models of the shelf, of every kind, called by the factory that has subscribed to them; and an int8 variation of
one of them, private, which runs in a limited worker process.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from adapters.quantise import quantise
from tests.live import LiveMarket
from tests.model_store.graphs import save, value
from tests.neighbours import ask, starter

SHELF = {
    "tabular": "lingnan/machine-failure-network",
    "trees": "dongzhi/steel-faults-boosting",
    "image": "dongzhi/board-defects-conv",
    "embedding": "pearl/board-base",
    "text": "dongzhi/work-order-characters",
    "series": "dongzhi/bearing-conv",
    "life": "dongzhi/turbofan-life-conv",
}
INT8 = "demo-factory/board-int8"
KINDS = [*SHELF, "quantised"]
BINARY = list(itertools.product((True, False), repeat=2))  # of the inputs, of the outputs


@dataclass(frozen=True)
class Sample:
    """A model as the wire names it, one tensor to call it with, and what ONNX Runtime answers to it here."""

    model: str
    tensor: str
    output: str
    rows: np.ndarray
    wanted: np.ndarray


def computed(graph: Path, tensor: str, rows: np.ndarray) -> tuple[str, np.ndarray]:
    """The first output's name and values, in this process."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name = session.get_outputs()[0].name
    return name, session.run([name], {tensor: rows})[0]


@pytest.fixture(scope="module")
def samples(live_market: LiveMarket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """One for each kind; the int8 graph is made from the compact board model and published by the engineer."""
    folder = tmp_path_factory.mktemp("starters")
    made = {}
    for kind, name in SHELF.items():
        bundle = starter(name, folder / kind)
        with np.load(bundle.path / "golden" / "0" / "inputs.npz") as golden:
            ((tensor, rows),) = golden.items()
        output, wanted = computed(bundle.model_path, tensor, rows)
        made[kind] = Sample(name.replace("/", "--"), tensor, output, rows, wanted)
    board = starter("lingnan/board-defects-compact", folder / "compact")
    rows = made["image"].rows
    quantise(board.model_path, folder / "int8.onnx", "static", [{"image": rows}])
    engineer = live_market.client("engineer")
    files = {"file": ("m.onnx", (folder / "int8.onnx").read_bytes())}
    ask(engineer.post("/api/v1/publish", files=files, data={"name": INT8, "private": "true"}))
    output, wanted = computed(folder / "int8.onnx", "image", rows)
    made["quantised"] = Sample(INT8.replace("/", "--"), "image", output, rows, wanted)
    return made


@pytest.fixture
def headers(live_market: LiveMarket) -> dict[str, str]:
    return {"Authorization": f"Bearer {live_market.keys['factory']}"}


def request_of(client: Any, sample: Sample, binary_in: bool, binary_out: bool | None) -> tuple[list[Any], Any]:
    """Inputs and outputs as the client library builds them; `binary_out` None names no outputs."""
    tensor = client.InferInput(sample.tensor, list(sample.rows.shape), "FP32")
    tensor.set_data_from_numpy(sample.rows, binary_data=binary_in)
    if binary_out is None:
        return [tensor], None
    return [tensor], [client.InferRequestedOutput(sample.output, binary_data=binary_out)]


def check(sample: Sample, result: Any) -> None:
    got = result.as_numpy(sample.output)
    assert (got.dtype, got.shape) == (sample.wanted.dtype, sample.wanted.shape)
    np.testing.assert_allclose(got, sample.wanted, rtol=1e-6, atol=1e-7)
    assert np.ptp(sample.wanted) > 0 or sample.wanted.size == 1  # else any constant would pass


@pytest.mark.parametrize(("binary_in", "binary_out"), [*BINARY, (True, None)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_client_gets_onnx_runtime_s_numbers(live_market, samples, headers, kind, binary_in, binary_out):
    sample = samples[kind]
    with triton.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        inputs, outputs = request_of(triton, sample, binary_in, binary_out)
        check(sample, client.infer(sample.model, inputs, outputs=outputs, headers=headers))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_aio_client_gets_them_too(live_market, samples, headers, kind):
    sample = samples[kind]
    async with triton_aio.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        for binary_in, binary_out in [*BINARY, (True, None)]:
            inputs, outputs = request_of(triton_aio, sample, binary_in, binary_out)
            # a copy: the aio client writes the length of this request's JSON into the dictionary that it is given
            check(sample, await client.infer(sample.model, inputs, outputs=outputs, headers=dict(headers)))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_answers_change_nothing(live_market, samples, headers, algorithm):
    sample = samples["image"]
    with triton.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        inputs, outputs = request_of(triton, sample, True, True)
        result = client.infer(
            sample.model, inputs, outputs=outputs, headers=headers,
            request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
        )  # fmt: skip
        check(sample, result)


def mixed_graph(path: Path) -> bytes:
    """Text through as it is, and a·n as a number: three types in, two out."""
    nodes = [
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "f"], ["product"]),
        helper.make_node("Identity", ["words"], ["echo"]),
    ]
    inputs = [value("a", TensorProto.FLOAT, ["k"]), value("n", TensorProto.INT64, ["k"]),
              value("words", TensorProto.STRING, ["w"])]  # fmt: skip
    outputs = [value("product", TensorProto.FLOAT, ["k"]), value("echo", TensorProto.STRING, ["w"])]
    return save(path, nodes, inputs, outputs).read_bytes()


@pytest.mark.parametrize("binary", list(itertools.product((True, False), repeat=5)))
def test_binary_and_json_tensors_stand_side_by_side_in_one_request(live_market, headers, tmp_path, binary):
    files = {"file": ("m.onnx", mixed_graph(tmp_path / "m.onnx"))}
    form = {"name": "demo-factory/mixed", "private": "true"}
    ask(live_market.client("engineer").post("/api/v1/publish", files=files, data=form))
    given = [
        ("a", "FP32", np.array([0.1, 2, -3], np.float32)),
        ("n", "INT64", np.array([1, 1 << 40, 3])),
        ("words", "BYTES", np.array(["轴承".encode(), b""], np.object_)),
    ]
    inputs = []
    for (name, datatype, array), as_binary in zip(given, binary[:3], strict=True):
        inputs.append(triton.InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=as_binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=as_binary)
               for name, as_binary in zip(("product", "echo"), binary[3:], strict=True)]  # fmt: skip
    with triton.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        result = client.infer("demo-factory--mixed", inputs, outputs=outputs, headers=headers)
    np.testing.assert_array_equal(result.as_numpy("product"), given[0][2] * given[1][2].astype(np.float32))
    echo = [item.decode() if isinstance(item, bytes) else item for item in result.as_numpy("echo").tolist()]
    assert echo == ["轴承", ""]


def test_metadata_is_what_the_call_needs(live_market, samples, headers):
    sample = samples["series"]
    with triton.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready(sample.model, headers=headers)
        metadata = client.get_model_metadata(sample.model, headers=headers)
        assert metadata["inputs"] == [{"name": "signal", "datatype": "FP32", "shape": [-1, 1, 1024]}]
        assert sample.model in {row["name"] for row in client.get_model_repository_index(headers=headers)}


def test_what_is_refused_reaches_the_client_s_user_in_words(live_market, samples, headers):
    sample = samples["tabular"]
    inputs, outputs = request_of(triton, sample, True, True)
    with triton.InferenceServerClient(live_market.url.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException, match=r"MODEL_NOT_FOUND: .*没有名为"):
            client.infer("dongzhi--nothing", inputs, headers=headers)
        with pytest.raises(InferenceServerException, match=r"KEY_MISSING: .*没有携带密钥"):
            client.infer(sample.model, inputs, outputs=outputs)


@pytest.mark.parametrize("extra", [{}, {"Idempotency-Key": "one-image-call"}], ids=["at once", "queued"])
def test_images_sent_as_tensors_cost_what_images_cost(live_market, samples, headers, extra):
    """0.60 fen an image, counted by the engine: the caller of the tensor interface cannot leave them out."""
    sample = samples["image"]
    tensor = {"name": sample.tensor, "datatype": "FP32", "shape": [3, 1, 64, 64], "data": [0.5] * (3 * 64 * 64)}
    factory = live_market.client("factory")
    for _ in range(2):
        answer = factory.post(f"/v2/models/{sample.model}/infer", json={"inputs": [tensor]}, headers=extra)
        assert ask(answer)["outputs"][0]["shape"] == [3, 7]
        assert answer.headers["x-amount-micro"] == "1800000"
