"""What is wrong with a request itself."""

from __future__ import annotations

from model_store.errors import BadInput, Conflict, HeadTooLarge, NotFound, NotHere, TooLarge


def request_json(why: str) -> BadInput:
    return BadInput(
        "REQUEST_JSON",
        zh=f"请求体不是有效的 JSON: {why[:200]}",
        en=f"the body is not valid JSON: {why[:200]}",
        remedy_zh="请发送一个完整的 JSON 对象, 格式见 HTTP 接口文档中此路径的示例",
        remedy_en="send one whole JSON object, as this path's example in the HTTP API's documentation has it",
        field="body",
    )


def request_message(why: str) -> BadInput:
    return BadInput(
        "REQUEST_MESSAGE",
        zh=f"请求不是有效的 protobuf 消息: {why[:200]}",
        en=f"the request is not a valid protobuf message: {why[:200]}",
        remedy_zh="请使用公开的 Open Inference / Triton proto 生成的客户端",
        remedy_en="use a client made from the public Open Inference or Triton proto",
        field="body",
    )


def request_field(field: str, zh: str, en: str) -> BadInput:
    """A field of the request that breaks a rule; `zh` and `en` say what it must be."""
    return BadInput(
        "REQUEST_FIELD",
        zh=f"请求字段 {field[:160]} 有误: {zh}",
        en=f"{field[:160]} {en}",
        remedy_zh="请对照 HTTP 接口文档中此路径的示例修改",
        remedy_en="compare the request with this path's example in the HTTP API's documentation",
        field=field[:160],
    )


def extension_not_offered(field: str, zh: str, en: str, remedy_zh: str, remedy_en: str) -> NotHere:
    """One of Triton's extensions that this server does not have; `zh` and `en` name it."""
    return NotHere(
        "EXTENSION_NOT_OFFERED",
        zh=f"本服务不提供{zh}",
        en=f"this server does not offer {en}",
        remedy_zh=remedy_zh,
        remedy_en=remedy_en,
        field=field[:160],
    )


def shared_memory_not_offered(field: str) -> NotHere:
    return extension_not_offered(
        field,
        "共享内存",
        "shared memory",
        "请在请求中直接发送张量 (二进制最快)",
        "send the tensors themselves; binary is fastest",
    )


def tensor_data(name: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "TENSOR_DATA",
        zh=f"张量“{name[:120]}”的数据有误: {zh}",
        en=f"the data of tensor {name[:120]!r} {en}",
        remedy_zh="请使 data 的个数与 shape 一致, 类型与 datatype 一致",
        remedy_en="make the number of values fit `shape`, and their kind fit `datatype`",
        field=name[:120],
    )


def tensor_binary(name: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "TENSOR_BINARY",
        zh=f"张量“{name[:120]}”的二进制数据有误: {zh}",
        en=f"the binary data of tensor {name[:120]!r} {en}",
        remedy_zh="请检查 binary_data_size 与 Inference-Header-Content-Length (gRPC: raw_input_contents), "
        "二进制部分按 inputs 的顺序排列",
        remedy_en="check binary_data_size and Inference-Header-Content-Length (gRPC: raw_input_contents); "
        "binary parts follow the order of inputs",
        field=name[:120],
    )


def binary_required(name: str, dtype: str) -> BadInput:
    return BadInput(
        "BINARY_REQUIRED",
        zh=f"张量“{name[:120]}”的类型 {dtype} 只能以二进制传输",
        en=f"tensor {name[:120]!r} is {dtype}, which travels as binary only",
        remedy_zh="请使用 binary_data_size (输入) 或 binary_data (输出); gRPC 请使用 raw_input_contents",
        remedy_en="use binary_data_size (input) or binary_data (output); raw_input_contents over gRPC",
        field=name[:120],
    )


def body_encoding(why: str) -> BadInput:
    return BadInput(
        "BODY_ENCODING",
        zh=f"请求体无法解压: {why[:120]}",
        en=f"the body cannot be decompressed: {why[:120]}",
        remedy_zh="请用 gzip 或 deflate 压缩, 或不压缩",
        remedy_en="compress with gzip or deflate, or not at all",
        field="content-encoding",
    )


def body_too_large(limit: int) -> TooLarge:
    return TooLarge(
        "BODY_TOO_LARGE",
        zh=f"请求体超过上限 {limit} 字节 (按解压后计)",
        en=f"the body is over {limit} bytes (decompressed)",
        remedy_zh="请分多次发送, 或改用二进制张量",
        remedy_en="send it in several requests, or use binary tensors",
        field="body",
    )


def head_too_large(limit: int) -> HeadTooLarge:
    return HeadTooLarge(
        "HEAD_TOO_LARGE",
        zh=f"请求行与标头超过上限 {limit} 字节",
        en=f"the address and headers of the request are over {limit} bytes",
        remedy_zh="请减少标头 (例如 Cookie), 数据放入请求体",
        remedy_en="send fewer headers (cookies, for one), and data in the body",
        field="headers",
    )


def no_such_path(path: str) -> NotFound:
    return NotFound(
        "NO_SUCH_PATH",
        zh=f"没有这个地址: {path[:120]}",
        en=f"there is nothing at {path[:120]}",
        remedy_zh="推理接口: POST /v2/models/{vendor--name}/infer",
        remedy_en="to infer: POST /v2/models/{vendor--name}/infer",
    )


def idempotency_conflict() -> Conflict:
    return Conflict(
        "IDEMPOTENCY_CONFLICT",
        zh="同一个 Idempotency-Key 已用于另一个请求",
        en="this Idempotency-Key was used for another request",
        remedy_zh="重试请发送完全相同的请求; 新的请求请用新的 Idempotency-Key",
        remedy_en="a retry sends exactly the same request; a new request needs a new Idempotency-Key",
        field="idempotency-key",
    )
