"""How a refusal is written, by surface."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from model_store.errors import Refusal


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
