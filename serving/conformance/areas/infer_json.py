"""Area infer-json: inference with explicit tensor data."""

from __future__ import annotations

import json

import numpy as np

from serving.conformance.checks import Area, expect, oip, rfc
from serving.conformance.kit import JSON_HEADERS, Kit, Sent
from serving.conformance.models import mlp
from serving.conformance.tensors import Array, Output, json_tensor, outputs_of

AREA = Area("infer-json", "I", "JSON 推理")
_RESPONSE = oip(
    "Inference Response JSON Object", "A successful inference request is indicated by a 200 HTTP status code."
)
_ID = oip("Inference Request JSON Object", "if specified this identifier must be returned in the response")
_OUTPUTS = oip("Inference Request JSON Object", "if not specified all outputs produced by the model will be returned")
_ASKED = oip("Request Output", "used to request which output tensors should be returned from the model")
_DATA = oip(
    "Tensor Data", "in their nature multi-dimensional representation, or as a flattened one-dimensional representation"
)
_ORDER = oip("Tensor Data", "Tensor data must be presented in row-major order of the tensor elements.")
_NAME = oip("Request Input", '"name" : The name of the input tensor.')
_BATCH = oip("Request Input", "the shape and data must represent the full shape and contents of the entire batch")
_MODEL = oip("Inference Response JSON Object", '"model_name" : The name of the model used for inference.')

A: Array = np.array([[1, 2, 3, 4], [50, -60, 70, 2_000_000]], np.int32)
B: Array = np.array([[10, -20, 30, 0], [5, 6, -7, 100_000]], np.int32)
SENT: tuple[Sent, Sent] = (("input0", "INT32", A), ("input1", "INT32", B))


def check_add_sub(outputs: dict[str, Output]) -> None:
    """The sum and the difference of A and B, and nothing else."""
    expect(set(outputs) == {"sum", "difference"}, f"the outputs are {sorted(outputs)}")
    for name, wanted in (("sum", A + B), ("difference", A - B)):
        found = outputs[name]
        expect((found.datatype, found.shape) == ("INT32", (2, 4)), f"{name} is {found.datatype} {found.shape}")
        expect(np.array_equal(found.array, wanted), f"{name} is {found.array.tolist()}, not {wanted.tolist()}")


@AREA.must("任意模型: 响应结构合规", "any model: the response keeps to its schema", _RESPONSE)
def any_model(kit: Kit) -> None:
    outputs = outputs_of(kit.infer_subject())
    described = {each.name: each.datatype for each in kit.subject_outputs}
    found = {name: output.datatype for name, output in outputs.items()}
    expect(found == described, f"the outputs are {found}, its metadata says {described}")


@AREA.must("一维数据", "flat data: right values", _DATA, needs=("add-sub",))
def flat_data(kit: Kit) -> None:
    check_add_sub(kit.outputs("add-sub", *SENT))


@AREA.must("嵌套数据", "nested data: the same values", _DATA, needs=("add-sub",))
def nested_data(kit: Kit) -> None:
    check_add_sub(kit.outputs("add-sub", *SENT, nested=True))


@AREA.must("行优先顺序", "row-major order: 2×3 comes back as it went", _ORDER, needs=("dynamic",))
def row_major(kit: Kit) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for nested in (False, True):
        found = kit.outputs("dynamic", ("x", "FP32", x), nested=nested)["y"]
        expect(found.shape == (2, 3), f"the shape is {found.shape}")
        expect(np.array_equal(found.array, x), f"the data are {found.array.tolist()}")


@AREA.must("按名称而非次序匹配输入", "inputs go by name, not by place", _NAME, needs=("add-sub",))
def inputs_by_name(kit: Kit) -> None:
    check_add_sub(kit.outputs("add-sub", SENT[1], SENT[0]))


@AREA.must("未指定 outputs 时返回全部", "without outputs, all are returned", _OUTPUTS, needs=("multi-output",))
def all_outputs(kit: Kit) -> None:
    outputs = kit.outputs("multi-output", ("x", "FP32", np.ones((2, 3), np.float32)))
    expect(set(outputs) == {"total", "positive", "size"}, f"the outputs are {sorted(outputs)}")


@AREA.must("只返回所要的输出", "only the outputs asked for are returned", _ASKED, needs=("add-sub",))
def requested_output(kit: Kit) -> None:
    for name in ("sum", "difference"):
        outputs = kit.outputs("add-sub", *SENT, outputs=[{"name": name}])
        expect(set(outputs) == {name}, f"asked for {name}, got {sorted(outputs)}")


@AREA.must("返回请求的 id", "the request's id is returned", _ID)
def id_is_returned(kit: Kit) -> None:
    exchange = kit.infer_subject(id="conformance-42")
    outputs_of(exchange)
    expect(exchange.json().get("id") == "conformance-42", f"the id is {exchange.json().get('id')!r}")


@AREA.must("返回任意文本的 id", "any text is an id: quotes, Chinese, emoji", _ID)
def unicode_id(kit: Kit) -> None:
    wanted = 'a "b" \\ 轴承 😀 \u0001'
    exchange = kit.infer_subject(id=wanted)
    outputs_of(exchange)
    expect(exchange.json().get("id") == wanted, f"the id is {exchange.json().get('id')!r}")


@AREA.must("id 若有则为文本", "an id in the response is a string", _RESPONSE)
def id_is_a_string(kit: Kit) -> None:
    exchange = kit.infer_subject()
    outputs_of(exchange)
    found = exchange.json()
    expect("id" not in found or isinstance(found["id"], str), f"the id is {found.get('id')!r}")


@AREA.must("返回模型名", "the response names the model", _MODEL)
def model_name(kit: Kit) -> None:
    exchange = kit.infer_subject()
    outputs_of(exchange)
    expect(exchange.json().get("model_name") == kit.subject, f"model_name is {exchange.json().get('model_name')!r}")


@AREA.must("整批输入与逐行结果一致", "a batch of five gives the five rows' answers", _BATCH, needs=("mlp",))
def batch(kit: Kit) -> None:
    x = np.array([[1, 2, 3, 4], [-1, 0, 0.5, 2], [0, 0, 0, 0], [9, -9, 1, 1], [0.25, 4, -2, 8]], np.float32)
    whole = kit.outputs("mlp", ("x", "FP32", x))["y"]
    expect(whole.shape == (5, 3), f"the shape is {whole.shape}")
    expect(np.allclose(whole.array, mlp(x), atol=1e-5), f"the answers are {whole.array.tolist()}")
    for row in range(len(x)):
        single = kit.outputs("mlp", ("x", "FP32", x[row : row + 1]))["y"]
        expect(np.allclose(single.array, whole.array[row : row + 1], atol=1e-5), f"row {row} alone differs")


@AREA.must(
    "JSON 的空白、键序与转义无关紧要",
    "white space, the order of keys and escapes do not matter",
    rfc(8259, "2, 4, 7", "Insignificant whitespace is allowed; an object is an unordered collection."),
    needs=("add-sub",),
)
def json_is_json(kit: Kit) -> None:
    inputs = [dict(reversed(json_tensor(*tensor).items())) for tensor in SENT]
    text = json.dumps({"inputs": inputs, "id": "spaced"}, indent="\t", separators=(" , ", " : "))
    text = "\r\n " + text.replace('"name"', '"\\u006eame"').replace('"inputs"', '"inpu\\u0074s"') + "\n\n"
    exchange = kit.post(kit.path(kit.name_of("add-sub"), "infer"), text.encode(), JSON_HEADERS)
    check_add_sub(outputs_of(exchange))


@AREA.must("响应为严格的 JSON", "a response's JSON keeps to RFC 8259", rfc(8259, "2", "JSON-text = ws value ws"))
def strict_response(kit: Kit) -> None:
    outputs_of(kit.infer_subject(id="strict"))
