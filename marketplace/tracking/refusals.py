"""How the MLflow surface refuses: MLflow's own error JSON, so that an unmodified client shows code, text and remedy."""

from __future__ import annotations

from starlette.responses import JSONResponse

from model_store.errors import BadInput, Conflict, Forbidden, NotFound, NotHere, Refusal, TooLarge

_CODES = {
    400: "INVALID_PARAMETER_VALUE", 401: "UNAUTHENTICATED", 402: "PERMISSION_DENIED", 403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST", 409: "INVALID_STATE", 413: "INVALID_PARAMETER_VALUE",
    422: "INVALID_PARAMETER_VALUE", 429: "REQUEST_LIMIT_EXCEEDED", 501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE", 504: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip


def mlflow_refusal(refusal: Refusal, request_id: str = "") -> JSONResponse:
    """`{"error_code", "message", …}` with the refusal's status; `error` holds the market's own shape besides."""
    parts = [f"{refusal.en} / {refusal.zh}"]
    if refusal.remedy_en or refusal.remedy_zh:
        parts.append(f"→ {refusal.remedy_en} / {refusal.remedy_zh}")
    parts += _findings_of(refusal)
    code = _CODES.get(refusal.status, "INTERNAL_ERROR")
    body = {
        "error_code": code,
        "message": f"[{refusal.code}] " + "\n".join(parts),
        "error": refusal.as_dict(request_id or None),
    }
    headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s is not None else {}
    return JSONResponse(body, status_code=refusal.status, headers=headers)


def _findings_of(refusal: Refusal) -> list[str]:
    """The errors of an inspection report, a line each: what to mend, in the terminal of whoever logged the model."""
    report = refusal.details.get("report")
    findings = report.get("findings", []) if isinstance(report, dict) else []
    errors = [finding for finding in findings if finding.get("severity") == "error"]
    return [
        f"- {finding['code']} {finding.get('where', '')}: {finding['en']} / {finding['zh']}" for finding in errors[:12]
    ]


def not_offered(what: str) -> NotHere:
    """An endpoint, or a use of one, that the market does not pass on."""
    return NotHere(
        "MLFLOW_NOT_OFFERED",
        zh=f"本市场的 MLflow 接口不提供: {what[:200]}",
        en=f"this market's MLflow surface does not offer {what[:200]}",
        remedy_zh="可用: 实验、运行、指标、模型记录、注册、别名与下载",
        remedy_en="it offers experiments, runs, metrics, logged models, registration, aliases and downloads",
    )


def not_found(kind: str, name: str) -> NotFound:
    """What is not there, or is another organisation's: the two are not told apart."""
    zh = {"experiment": "实验", "run": "运行", "logged model": "模型记录", "trace": "追踪", "artifact": "文件",
          "registered model": "模型", "model version": "模型版本"}[kind]  # fmt: skip
    return NotFound(
        "MLFLOW_NOT_FOUND",
        zh=f"没有{zh}“{name[:120]}”, 或不属于贵单位",
        en=f"there is no {kind} {name[:120]!r}, or it is not your organisation's",
        remedy_zh="请核对编号与所用密钥",
        remedy_en="check the id and the key in use",
        field=kind,
    )


def bad_request(zh: str, en: str, field: str | None = None) -> BadInput:
    return BadInput(
        "MLFLOW_REQUEST_INVALID",
        zh=zh,
        en=en,
        remedy_zh="请使用 mlflow 3.x 客户端",
        remedy_en="use an mlflow 3.x client",
        field=field,
    )


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        "MLFLOW_BODY_TOO_LARGE",
        zh=f"请求或回答超过上限 {limit} 字节",
        en=f"the request or the answer is over the limit of {limit} bytes",
        remedy_zh="请分批发送, 或减小文件",
        remedy_en="send it in parts, or make the file smaller",
    )


def not_yours(name: str, slug: str) -> Forbidden:
    return Forbidden(
        "NOT_YOUR_NAME",
        zh=f"名称“{name[:120]}”的前缀不属于贵单位",
        en=f"the name {name[:120]!r} does not begin with your organisation's own prefix",
        remedy_zh=f"请使用 {slug or '贵单位前缀'}--名称",
        remedy_en=f"use {slug or 'your prefix'}--name",
        field="name",
    )


def kept(zh: str, en: str, remedy_zh: str, remedy_en: str) -> Conflict:
    """What is published stays as it is."""
    return Conflict("PUBLISHED_STAYS", zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en)
