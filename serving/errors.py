"""The data plane's own refusals, as leaves of `model_store.errors.Refusal`.

::

    BadInput            REQUEST_JSON, REQUEST_MESSAGE, REQUEST_FIELD, TENSOR_DATA, TENSOR_BINARY, BINARY_REQUIRED,
                        BODY_ENCODING
    Unauthenticated     KEY_MISSING
    PaymentRequired     PRICE_MISSING, LEASE_TOO_SMALL
    Forbidden           SCOPE_MISSING, NOT_OWNER
    NotFound            NO_SUCH_PATH, MODEL_NOT_FOUND, MODEL_UNLOADED, ADAPTER_BASE_MISSING
    Conflict            IDEMPOTENCY_CONFLICT, PORT_IN_USE
    TooLarge            BODY_TOO_LARGE
    TooMany             QUEUE_FULL, WAIT_TOO_LONG, UPLOADS_FULL, RPCS_FULL, RATE_LIMITED, CONCURRENCY_LIMITED,
                        BODIES_FULL
    TooSlow             BODY_TOO_SLOW
    Broken              INTERNAL_ERROR
    NotHere             NO_MARKET_HERE, GRPC_NOT_INSTALLED, EXTENSION_NOT_OFFERED
    Unavailable         MEMORY_FULL, SHUTTING_DOWN, ADMISSION_UNAVAILABLE, JOURNAL_UNAVAILABLE, CONNECTIONS_FULL
    DeadlineExceeded    DEADLINE_EXCEEDED
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from model_store.errors import (
    BadInput,
    Broken,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    NotHere,
    PaymentRequired,
    Refusal,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthenticated,
    Unavailable,
)


def oip_error_body(refusal: Refusal, request_id: str, text: Callable[[Refusal], str] | None = None) -> bytes:
    """Open Inference's shape: `error` is one string, both languages and the remedy in it; the parts stand beside it."""
    return orjson.dumps({"error": (text or refusal_text)(refusal), **refusal.as_dict(request_id)}, default=str)


def refusal_text(refusal: Refusal) -> str:
    """Code, both languages and the remedy in one line."""
    parts = (f"{refusal.code}: {refusal.en}", refusal.zh, refusal.remedy_en, refusal.remedy_zh)
    return " · ".join(part for part in parts if part)


def native_error_body(refusal: Refusal, request_id: str) -> bytes:
    """The shape of every other JSON surface: `{"error": {code, message, message_zh, remedy, …}}`."""
    return orjson.dumps({"error": refusal.as_dict(request_id)}, default=str)


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


def key_missing() -> Unauthenticated:
    return Unauthenticated(
        "KEY_MISSING",
        zh="请求没有携带密钥",
        en="the request carries no key",
        remedy_zh="请加上请求头 Authorization: Bearer <密钥> 或 X-API-Key: <密钥>",
        remedy_en="add the header Authorization: Bearer <key>, or X-API-Key: <key>",
        field="authorization",
    )


def key_expired() -> Unauthenticated:
    return Unauthenticated(
        "KEY_EXPIRED",
        zh="密钥已过期",
        en="the key has expired",
        remedy_zh="请在控制台轮换或新建密钥",
        remedy_en="rotate it, or make a new one, in the console",
        field="authorization",
    )


def scope_missing(scope: str) -> Forbidden:
    return Forbidden(
        "SCOPE_MISSING",
        zh=f"该密钥没有“{scope}”权限",
        en=f"this key does not have the scope {scope!r}",
        remedy_zh="请换用有此权限的密钥, 或请管理员新建",
        remedy_en="use a key that has it, or ask an administrator for one",
        field="authorization",
    )


def not_owner(name: str) -> Forbidden:
    return Forbidden(
        "NOT_OWNER",
        zh=f"只有 {name} 的所有者或平台运营方可以执行此操作",
        en=f"only the owner of {name} or the operator may do this",
        remedy_zh="请换用所有者的密钥",
        remedy_en="use a key of its owner",
        field="model",
    )


def no_such_path(path: str) -> NotFound:
    return NotFound(
        "NO_SUCH_PATH",
        zh=f"没有这个地址: {path[:120]}",
        en=f"there is nothing at {path[:120]}",
        remedy_zh="推理接口: POST /v2/models/{vendor--name}/infer",
        remedy_en="to infer: POST /v2/models/{vendor--name}/infer",
    )


def adapter_base_missing(name: str, version: int) -> Refusal:
    return NotFound(
        "ADAPTER_BASE_MISSING",
        zh=f"适配器的基座 {name}@{version} 不在这里 (按摘要查找)",
        en=f"the adapter's base {name}@{version} is not here (looked up by its digest)",
        remedy_zh="请先提供该版本的基座模型包",
        remedy_en="serve that very version of the base too",
        field="adapter_of",
    )


def model_not_found(name: str, selector: str | None = None) -> NotFound:
    """The one refusal for a model that is not there or not to be seen by the caller."""
    shown = name[:100] + (f"@{selector[:40]}" if selector else "")
    return NotFound(
        "MODEL_NOT_FOUND",
        zh=f"没有名为“{shown}”的模型, 或您无权查看",
        en=f"there is no model {shown!r}, or you may not see it",
        remedy_zh="请在货架上搜索准确名称, 形式为 vendor/name 或 vendor/name@版本",
        remedy_en="search the shelf for its exact name: vendor/name or vendor/name@version",
        field="model",
        details={"model": name[:100], "version": (selector or "")[:40]},
    )


def model_unloaded(name: str) -> NotFound:
    """Asked only whether it is ready, and only in Triton's words."""
    return NotFound(
        "MODEL_UNLOADED",
        zh=f"模型“{name}”已被卸载",
        en=f"model {name!r} was unloaded",
        remedy_zh="请加载它 (/v2/repository/models/{model}/load), 或直接调用, 首次调用会自动加载",
        remedy_en="load it (/v2/repository/models/{model}/load), or just call it: the first call loads it",
        field="model",
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


def queue_full(name: str, retry_after_s: int) -> TooMany:
    return TooMany(
        "QUEUE_FULL",
        zh=f"贵单位在模型 {name} 等待的调用已满",
        en=f"your organisation's waiting calls of {name} fill their room",
        remedy_zh=f"请在 {retry_after_s} 秒后重试, 或把多行合并为一次请求",
        remedy_en=f"try again in {retry_after_s} s, or send several rows in one request",
        retry_after_s=retry_after_s,
    )


def wait_too_long(name: str, wait_ms: float, deadline_ms: float, retry_after_s: int) -> TooMany:
    return TooMany(
        "WAIT_TOO_LONG",
        zh=f"排在前面的调用预计需 {wait_ms:.0f} 毫秒, 对 {name} 的本次调用无法在 {deadline_ms:.0f} 毫秒内完成, 未排队",
        en=f"the calls before this one of {name} are expected to take {wait_ms:.0f} ms; "
        f"it could not end within {deadline_ms:.0f} ms and was not queued",
        remedy_zh=f"请在 {retry_after_s} 秒后重试, 放宽 X-Deadline-Ms, 或把多行合并为一次请求",
        remedy_en=f"try again in {retry_after_s} s, allow more time in X-Deadline-Ms, or join rows in one request",
        field="deadline_ms",
        retry_after_s=retry_after_s,
    )


def rate_limited(rate_per_s: int, burst: int, retry_after_s: int) -> TooMany:
    return TooMany(
        "RATE_LIMITED",
        zh=f"该密钥每秒最多调用 {rate_per_s} 次 (突发 {burst} 次)",
        en=f"this key may make {rate_per_s} calls a second (a burst of {burst})",
        remedy_zh=f"请在 {retry_after_s} 秒后重试, 把多行合并为一次请求, 或在控制台提高该密钥的限额",
        remedy_en=f"try again in {retry_after_s} s, send several rows in one request, or raise the key's limit",
        field="authorization",
        retry_after_s=retry_after_s,
        details={"ratelimit": {"limit": burst, "remaining": 0, "reset": retry_after_s}},
    )


def concurrency_limited(concurrency: int) -> TooMany:
    return TooMany(
        "CONCURRENCY_LIMITED",
        zh=f"该密钥最多同时进行 {concurrency} 次调用",
        en=f"this key may have {concurrency} calls in hand",
        remedy_zh="请等前面的调用结束后重试, 或在控制台提高该密钥的限额",
        remedy_en="try again when one of them has ended, or raise the key's limit",
        field="authorization",
        retry_after_s=1,
    )


def bodies_full() -> TooMany:
    return TooMany(
        "BODIES_FULL",
        zh="在途请求的内容已占满内存额度",
        en="the bodies of the calls in hand fill the memory that they may have",
        remedy_zh="请在 1 秒后重试, 或把请求分小",
        remedy_en="try again in 1 s, or send smaller requests",
        field="body",
        retry_after_s=1,
    )


def body_too_slow() -> TooSlow:
    return TooSlow(
        "BODY_TOO_SLOW",
        zh="请求体到达得太慢, 已放弃",
        en="the body came in too slowly and was given up",
        remedy_zh="请检查网络, 或改用二进制张量、压缩请求体",
        remedy_en="look at the network, or send binary tensors or a compressed body",
        field="body",
    )


def connections_full() -> Unavailable:
    return Unavailable(
        "CONNECTIONS_FULL",
        zh="连接数已达上限",
        en="there are as many connections as this server takes",
        remedy_zh="请复用连接 (keep-alive), 关闭空闲连接, 并在 1 秒后重试",
        remedy_en="keep and reuse connections, close idle ones, and try again in 1 s",
        retry_after_s=1,
    )


def rpcs_full() -> TooMany:
    return TooMany(
        "RPCS_FULL",
        zh="同时进行的 gRPC 调用或流过多",
        en="too many gRPC calls or streams are in hand just now",
        remedy_zh="请在 1 秒后重试, 或在一个流、一次请求中发送更多行",
        remedy_en="try again in 1 s, or send more rows in one stream or request",
        retry_after_s=1,
    )


def process_away() -> Unavailable:
    return Unavailable(
        "PROCESS_AWAY",
        zh="处理该请求的进程正在重启",
        en="the process that answers this is being started again",
        remedy_zh="请稍后重试",
        remedy_en="try again in a moment",
        retry_after_s=2,
    )


def grpc_not_installed(missing: str) -> NotHere:
    return NotHere(
        "GRPC_NOT_INSTALLED",
        zh=f"未安装 gRPC 组件 (缺少 {missing})",
        en=f"gRPC is not installed here (missing: {missing})",
        remedy_zh="请安装: pip install 'algomart[grpc]', 或去掉 gRPC 端口",
        remedy_en="install it: pip install 'algomart[grpc]', or leave the gRPC port out",
    )


def port_in_use(host: str, port: int, setting: str, why: str) -> Conflict:
    """`setting`: the environment variable that names the port."""
    return Conflict(
        "PORT_IN_USE",
        zh=f"无法监听 {host}:{port}: {why}",
        en=f"cannot listen on {host}:{port}: {why}",
        remedy_zh=f"请停止占用该端口的程序, 或设置另一个 {setting}",
        remedy_en=f"stop what uses the port, or set another {setting}",
    )


def uploads_full() -> TooMany:
    return TooMany(
        "UPLOADS_FULL",
        zh="同时上传的样本过多, 暂时无法接收",
        en="too many samples are being uploaded just now",
        remedy_zh="请在 10 秒后重试",
        remedy_en="try again in 10 s",
        field="body",
        retry_after_s=10,
    )


def memory_full(name: str) -> Unavailable:
    return Unavailable(
        "MEMORY_FULL",
        zh=f"内存正被其他模型占用, 暂时无法加载 {name}",
        en=f"other models in use hold the memory; {name} cannot be loaded just now",
        remedy_zh="请稍后重试",
        remedy_en="try again shortly",
        retry_after_s=1,
    )


def shutting_down() -> Unavailable:
    return Unavailable(
        "SHUTTING_DOWN",
        zh="服务正在停止",
        en="the server is shutting down",
        remedy_zh="请稍后重试",
        remedy_en="try again shortly",
        retry_after_s=5,
    )


def admission_unavailable() -> Unavailable:
    return Unavailable(
        "ADMISSION_UNAVAILABLE",
        zh="暂时无法向账本申请额度",
        en="the ledger cannot be asked for a lease just now",
        remedy_zh="请稍后重试; 本次调用未计费",
        remedy_en="try again shortly; this call was not charged",
        retry_after_s=2,
    )


def price_missing(name: str) -> PaymentRequired:
    return PaymentRequired(
        "PRICE_MISSING",
        zh=f"{name} 没有可用的价格",
        en=f"there is no price for {name} that holds now",
        remedy_zh="请联系供应商公布价格",
        remedy_en="ask its vendor to publish a price",
        field="model",
    )


def lease_too_small(amount_micro: int) -> PaymentRequired:
    return PaymentRequired(
        "LEASE_TOO_SMALL",
        zh=f"可用额度不足以支付本次调用 ({amount_micro} 微分)",
        en=f"what is left does not cover this call ({amount_micro} micro-fen)",
        remedy_zh="请申请新的模型券, 提高自费上限, 或减少一次请求的行数",
        remedy_en="apply for another voucher, raise the cap on own cost, or send fewer rows",
    )


def internal_error() -> Broken:
    return Broken(
        "INTERNAL_ERROR",
        zh="平台内部错误, 已记录",
        en="something broke on our side; it has been logged",
        remedy_zh="请稍后重试; 若再次出现, 请把请求编号告诉平台运营方",
        remedy_en="try again; if it happens again, tell the operator the request id",
    )


def deadline_exceeded(deadline_ms: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        "DEADLINE_EXCEEDED",
        zh=f"调用超过 {deadline_ms:.0f} 毫秒的期限, 已放弃, 未计费",
        en=f"the call passed its deadline of {deadline_ms:.0f} ms and was given up; it was not charged",
        remedy_zh="请放宽 X-Deadline-Ms, 稍后重试, 或减少一次请求的行数",
        remedy_en="allow more time in X-Deadline-Ms, try later, or send fewer rows",
        field="deadline_ms",
    )
