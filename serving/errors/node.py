"""What the node cannot do just now, or at all."""

from __future__ import annotations

from collections.abc import Sequence

from model_store.errors import Broken, Conflict, DeadlineExceeded, NotHere, Refusal, TooMany, TooSlow, Unavailable


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


def model_in_use(name: str) -> Unavailable:
    return Unavailable(
        "MODEL_IN_USE",
        zh=f"模型“{name}”正在被调用, 未卸载",
        en=f"{name} is in use all the time and was not unloaded",
        remedy_zh="请在调用结束后重试",
        remedy_en="try again when its calls have ended",
        field="model",
        retry_after_s=10,
    )


def not_everywhere(verb: str, name: str, done: int, processes: int, why: Sequence[Refusal]) -> Unavailable:
    """`done` of `processes` had carried the order out; now none has."""
    codes = sorted({each.code for each in why})
    word_zh, word_en = ("加载", "loaded") if verb == "load" else ("卸载", "unloaded")
    return Unavailable(
        "NOT_EVERYWHERE",
        zh=f"{processes} 个进程中 {done} 个已{word_zh}“{name}”, {len(why)} 个未完成 ({', '.join(codes)}), 已全部撤回",
        en=f"{done} of {processes} processes {word_en} {name}, {len(why)} did not ({', '.join(codes)}); "
        "it was taken back in all",
        remedy_zh="请稍后重试; 若仍失败, 请查看日志",
        remedy_en="try again shortly; if it lasts, look at the log",
        field="model",
        retry_after_s=5,
        details={"done": done, "processes": processes, "reasons": codes},
    )
