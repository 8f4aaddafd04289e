"""Triton's extensions over HTTP, with the real `tritonclient` where it knows them: what is offered, and what is not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from model_store.errors import BadInput
from model_store.manifest import Manifest
from serving.grpc_server import GrpcServer
from serving.protocols.oip_classification import classified
from serving.protocols.oip_generate import decode_generate
from tests.serving.parts import FLOAT, KEY, model, rows, running_node
from tests.serving.test_http import Served, serve

CLASSES = ["apple", "pear", "plum", "pickle"]
info = helper.make_tensor_value_info


def scores() -> Any:
    """Four classes a row, as they are given; and the same as whole numbers."""
    return model(
        [
            helper.make_node("Identity", ["x"], ["probabilities"]),
            helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        ],
        [info("x", FLOAT, ["n", 4])],
        [info("probabilities", FLOAT, ["n", 4]), info("whole", TensorProto.INT32, ["n", 4])],
    )


def unbatched() -> Any:
    return model([helper.make_node("Identity", ["x"], ["y"])], [info("x", FLOAT, [2, 2])], [info("y", FLOAT, [2, 2])])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    for node in serve(tmp_path_factory.mktemp("node")):
        post = [{"op": "softmax", "tensor": "probabilities"}]
        post.append({"op": "classify", "tensor": "probabilities", "labels": CLASSES})  # type: ignore[dict-item]
        node.node.add("acme/scores", scores(), micro=7, manifest={"post": post})
        node.node.add("acme/unbatched", unbatched(), manifest={"batching": {"dynamic": False}})
        yield node


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as made:
        yield made


FRUIT = np.array([[1, 5, 10, 4], [0.25, -1, 0.5, 0.25]], np.float32)


def bearer() -> dict[str, str]:
    """New for each call: the client writes the length of the call's JSON into it."""
    return {"Authorization": f"Bearer {KEY}"}


def classes_of(client: Any, name: str, tensor: np.ndarray, output: str, count: int, binary: bool) -> np.ndarray:
    given_ = triton.InferInput("x", list(tensor.shape), "FP32")
    given_.set_data_from_numpy(tensor)
    asked = triton.InferRequestedOutput(output, binary_data=binary, class_count=count)
    answer = client.infer(name, [given_], outputs=[asked], headers=bearer()).as_numpy(output)
    text = np.vectorize(lambda item: item.decode() if isinstance(item, bytes) else str(item), otypes=[object])
    return text(answer)  # type: ignore[no-any-return]


# --- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_each_row_s_highest_values_come_with_index_and_label(client, binary) -> None:
    got = classes_of(client, "acme--scores", FRUIT, "probabilities", 2, binary)
    assert got.tolist() == [
        ["10.000000:2:plum", "5.000000:1:pear"],
        ["0.500000:2:plum", "0.250000:0:apple"],  # of equal values the lower index first
    ]


def test_whole_numbers_are_written_whole_and_an_output_without_labels_has_none(client) -> None:
    assert classes_of(client, "acme--scores", FRUIT[:1], "whole", 3, True).tolist() == [["10:2", "5:1", "4:3"]]


def test_more_classes_than_there_are_give_all_of_them(client) -> None:
    assert classes_of(client, "acme--scores", FRUIT, "probabilities", 9, True).shape == (2, 4)


def test_a_model_without_a_batch_dimension_answers_one_list(client) -> None:
    tensor = np.array([[1.1, 3.3], [0.5, 2.4]], np.float32)
    got = classes_of(client, "acme--unbatched", tensor, "y", 2, False)
    assert got.tolist() == ["3.300000:1", "2.400000:3"]


def test_other_outputs_of_the_request_stay_numbers_and_it_costs_what_a_call_costs(served) -> None:
    asked = [{"name": "whole"}, {"name": "probabilities", "parameters": {"classification": 1}}]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": FRUIT[0].tolist()}
    with served.client() as http:
        answer = http.post("/v2/models/acme--scores/infer", json={"inputs": [tensor], "outputs": asked})
    whole, classes = answer.json()["outputs"]
    assert (whole["datatype"], whole["data"]) == ("INT32", [1, 5, 10, 4])
    assert (classes["datatype"], classes["shape"], classes["data"]) == ("BYTES", [1, 1], ["10.000000:2:plum"])
    assert answer.headers["x-amount-micro"] == "7"


@pytest.mark.parametrize(
    ("name", "tensor", "output", "count"),
    [
        ("acme--scores", "x", "probabilities", -1),
        ("acme--scores", "x", "probabilities", 1.5),
        ("acme--types", "in_BYTES", "out_BYTES", 1),
        ("acme--types", "in_BOOL", "out_BOOL", 1),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_it_is_paid_for(served, name, tensor, output, count) -> None:
    datatype = tensor.removeprefix("in_") if "_" in tensor else "FP32"
    data = {"BYTES": ["a"], "BOOL": [True]}.get(datatype, [1.0] * 4)
    inputs = [{"name": tensor, "datatype": datatype, "shape": [len(data)], "data": data}]
    outputs = [{"name": output, "parameters": {"classification": count}}]
    before = len(served.node.usage())
    with served.client() as http:
        answer = http.post(f"/v2/models/{name}/infer", json={"inputs": inputs, "outputs": outputs})
    assert (answer.status_code, answer.json()["code"]) == (400, "REQUEST_FIELD")
    assert "classification" in answer.json()["field"]
    assert len(served.node.usage()) == before


def test_an_answer_of_too_many_classifications_is_refused(served) -> None:
    inputs = [{"name": "in_FP32", "datatype": "FP32", "shape": [200_000], "data": [1.0] * 200_000}]
    outputs = [{"name": "out_FP32", "parameters": {"classification": 1}}]
    with served.client() as http:
        answer = http.post("/v2/models/acme--types/infer", json={"inputs": inputs, "outputs": outputs})
    assert answer.json()["code"] == "REQUEST_FIELD"


BATCHED = {
    "name": "a/b",
    "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, -1]}],
}


@settings(deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.uint64, np.int64]),
        st.tuples(st.integers(1, 3), st.integers(1, 5)),
    ),
    st.integers(1, 6),
)
def test_any_numbers_are_ranked_from_the_highest(array: np.ndarray, count: int) -> None:
    got = classified({"y": array}, {"y": count}, Manifest.model_validate(BATCHED))["y"]
    assert got.shape == (len(array), min(count, array.shape[1]))
    for row, answer in zip(array.tolist(), got, strict=True):
        places = [int(text.split(b":")[1]) for text in answer]
        assert len(set(places)) == len(places)
        ranked = [-np.inf if row[place] != row[place] else row[place] for place in places]
        others = [value for place, value in enumerate(row) if place not in places]
        assert ranked == sorted(ranked, reverse=True)
        assert all(value != value or value <= ranked[-1] for value in others)
        for text, place in zip(answer, places, strict=True):
            written = float(text.split(b":")[0])
            assert written == row[place] or abs(written - row[place]) <= 5e-7 or row[place] != row[place]


# --- generate ---------------------------------------------------------------------------------------------------------


def generate(served: Served, name: str, document: Any, verb: str = "generate", **headers: str) -> httpx.Response:
    with served.client(**headers) as http:
        return http.post(f"/v2/models/{name}/{verb}", json=document)


def test_generate_takes_inputs_by_name_and_answers_outputs_by_name(served) -> None:
    answer = generate(served, "acme--double", {"x": [1, 2, 3, 4, 5, 6], "id": "17"})
    assert answer.json() == {
        "model_name": "acme--double", "model_version": "1", "id": "17", "y": [2, 4, 6, 8, 10, 12],
    }  # fmt: skip
    assert answer.headers["x-amount-micro"] == "370000"
    assert answer.headers["x-usage-id"] in {record.usage_id for record in served.node.usage()}


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_stream_has_the_one_answer_as_its_event(served, version) -> None:
    answer = generate(served, f"acme--double{version}", {"x": [[1, 2, 3]]}, "generate_stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    (event,) = answer.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(event.removeprefix("data: "))["y"] == [2, 4, 6]
    assert answer.headers["x-amount-micro"] == "370000"


def test_one_element_is_a_scalar_and_parameters_may_hold_inputs(served) -> None:
    given_ = {f"in_{name}": 1 for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")}
    given_ |= {"in_FP16": 0.5, "in_FP32": 0.5, "in_FP64": 0.5, "in_BOOL": True}
    answer = generate(served, "acme--types", {**given_, "parameters": {"in_BYTES": "轴承", "temperature": 0}})
    wanted = {name.replace("in_", "out_"): value for name, value in given_.items()} | {"out_BYTES": "轴承"}
    assert {name: value for name, value in answer.json().items() if name.startswith("out_")} == wanted


def test_nan_is_answered_as_infer_answers_it(served) -> None:
    with served.client() as http:
        answer = http.post("/v2/models/acme--double/generate", content=b'{"x": [NaN, Infinity, 1]}')
    assert json.loads(answer.text)["y"] == ["NaN", "Infinity", 2]


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("name", "document", "status", "code"),
    [
        ("acme--double", {"x": [1, 2, 3, 4]}, 400, "TENSOR_DATA"),
        ("acme--double", {"x": [[1, 2], [3]]}, 400, "TENSOR_DATA"),
        ("acme--double", {"x": "text"}, 400, "TENSOR_DATA"),
        ("acme--double", {"x": {}}, 400, "TENSOR_DATA"),
        ("acme--double", {"X": [1, 2, 3]}, 400, "REQUEST_FIELD"),
        ("acme--double", {}, 400, "TENSOR_MISSING"),
        ("acme--double", [], 400, "REQUEST_FIELD"),
        ("acme--double", {"x": [1, 2, 3], "parameters": {"a": {}}}, 400, "REQUEST_FIELD"),
        ("acme--nothing", {"x": [1, 2, 3]}, 404, "MODEL_NOT_FOUND"),
    ],
)
def test_what_cannot_be_generated_is_refused_as_infer_refuses_and_costs_nothing(
    served, verb, name, document, status, code
) -> None:
    before = len(served.node.usage())
    answer = generate(served, name, document, verb)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["error"].startswith(code)
    assert answer.headers["content-type"] == "application/json"
    assert len(served.node.usage()) == before


def test_generate_repeated_under_its_idempotency_key_is_charged_once(served) -> None:
    key = {"Idempotency-Key": "generate-once"}
    first, second = (generate(served, "acme--double", {"x": [1, 2, 3]}, **key) for _ in range(2))
    assert first.headers["x-usage-id"] == second.headers["x-usage-id"]
    assert generate(served, "acme--double", {"x": [1, 2, 4]}, **key).status_code == 409


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["x", "t", "id", "parameters"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TWO = {
    "name": "a/b",
    "inputs": [
        {"name": "x", "dtype": "FP32", "shape": [-1, 2, -1]},
        {"name": "t", "dtype": "BYTES", "shape": [-1, 0]},
    ],
    "outputs": [],
}


@settings(deadline=None)
@given(JSON)
def test_any_json_is_decoded_or_refused(document: Any) -> None:
    with contextlib.suppress(BadInput):
        request = decode_generate(json.dumps(document).encode(), Manifest.model_validate(TWO))
        assert all(isinstance(array, np.ndarray) for array in request.inputs.values())


# --- what is not offered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_system_shared_memory_status(headers=bearer()),
        lambda client: client.register_system_shared_memory("a", "/a", 64, headers=bearer()),
        lambda client: client.unregister_system_shared_memory(headers=bearer()),
        lambda client: client.get_cuda_shared_memory_status(headers=bearer()),
        lambda client: client.get_trace_settings(headers=bearer()),
        lambda client: client.get_trace_settings("acme--double", headers=bearer()),
        lambda client: client.update_trace_settings("acme--double", {"trace_level": "TIMESTAMPS"}, headers=bearer()),
        lambda client: client.get_log_settings(headers=bearer()),
        lambda client: client.update_log_settings({"log_verbose_level": 1}, headers=bearer()),
        lambda client: client.load_model("acme--double", config='{"max_batch_size": 16}', headers=bearer()),
    ],
)
def test_extensions_that_are_not_offered_say_so_in_both_languages(client, call) -> None:
    with pytest.raises(
        InferenceServerException, match=r"EXTENSION_NOT_OFFERED: this server does not offer .*本服务不提供"
    ):
        call(client)


@pytest.mark.parametrize("more", [{"sequence_id": 7, "sequence_start": True}, {"sequence_id": "a"}])
def test_a_call_that_counts_on_state_is_refused_not_answered_without(served, client, more) -> None:
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(rows(1))
    before = len(served.node.usage())
    with pytest.raises(InferenceServerException, match="EXTENSION_NOT_OFFERED"):
        client.infer("acme--double", [tensor], headers=bearer(), **more)
    assert len(served.node.usage()) == before


def test_tensors_in_shared_memory_are_refused(client) -> None:
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match="EXTENSION_NOT_OFFERED"):
        client.infer("acme--double", [tensor], headers=bearer())
    tensor.set_data_from_numpy(rows(1))
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory("region", 12)
    with pytest.raises(InferenceServerException, match="EXTENSION_NOT_OFFERED"):
        client.infer("acme--double", [tensor], outputs=[output], headers=bearer())


def test_the_server_lists_what_it_offers_and_nothing_else(client) -> None:
    offered = client.get_server_metadata(headers=bearer())["extensions"]
    assert {"binary_tensor_data", "classification", "generate", "schedule_policy", "statistics"} <= set(offered)
    assert not {"sequence", "trace", "logging", "system_shared_memory", "cuda_shared_memory"} & set(offered)


async def test_classifications_are_the_same_over_grpc(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        post = [{"op": "classify", "tensor": "probabilities", "labels": CLASSES}]
        node.add("acme/scores", scores(), manifest={"post": post})
        server = GrpcServer(node.app, "127.0.0.1", 0, 0)
        await server.start()
        try:
            async with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                tensor = triton_grpc.InferInput("x", [2, 4], "FP32")
                tensor.set_data_from_numpy(FRUIT)
                asked = triton_grpc.InferRequestedOutput("probabilities", class_count=2)
                headers = {"authorization": f"Bearer {KEY}"}
                answer = await client.infer("acme--scores", [tensor], outputs=[asked], headers=headers)
        finally:
            await server.stop()
    assert answer.as_numpy("probabilities").tolist() == [
        [b"10.000000:2:plum", b"5.000000:1:pear"],
        [b"0.500000:2:plum", b"0.250000:0:apple"],
    ]


@pytest.mark.parametrize("priority", [1, 2, 9])
def test_the_client_may_give_a_priority(client: triton.InferenceServerClient, priority: int) -> None:
    x = rows(1)
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(x)
    answer = client.infer("acme--double", [tensor], headers=bearer(), priority=priority)
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x)
