"""How large a request may be before any endpoint sees it: JSON is small, forms with files are spooled to disk.

Publishing, files of evidence and the MLflow surface count for themselves, by limits of their own; the data plane never
gets here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from marketplace.errors import refusal_response
from serving.errors.requests import body_too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SMALL_BYTES = 2 << 20  # the largest JSON of the market: a programme's file
FORM_BYTES = 272 << 20  # a page's form with a sample set of 256 MiB in it
OWN_BOUNDS = ("/api/v1/publish", "/api/v1/inspect", "/mlflow")
WITH_A_FILE = re.compile(r"/api/v1/(applications|invoices|subsidies)/[^/]{1,80}/(evidence|file)")
NEVER_FILES = ("/api/", "/login", "/do/")


def limit_of(path: str, content_type: str) -> int | None:
    """Bytes that the body of such a request may have; None where the endpoint bounds it itself."""
    if path.startswith(OWN_BOUNDS) or WITH_A_FILE.fullmatch(path):
        return None
    if content_type.lower().startswith("multipart/form-data") and not path.startswith(NEVER_FILES):
        return FORM_BYTES
    return SMALL_BYTES


class BodyLimit:
    """Refuses by the declared length at once, and otherwise as soon as more has come in: 413 BODY_TOO_LARGE."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        limit = limit_of(scope.get("path", ""), headers.get(b"content-type", b"").decode("latin-1"))
        if scope["type"] != "http" or limit is None:
            await self._app(scope, receive, send)
            return
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:18]) > limit:
            response = refusal_response(body_too_large(limit), str(scope.get("algomart.request_id", "")))
            await response(scope, receive, send)
            return
        left = limit

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # Not the refusal itself: what the framework does not know, it takes for a body that cannot be parsed.
                raise HTTPException(413, str(limit))
            return message

        await self._app(scope, counted, send)
