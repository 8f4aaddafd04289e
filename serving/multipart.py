"""multipart/form-data for the one upload that serving takes: a file and a few text fields, from a body in memory.

Parts are found by their boundary and cut out once; the content is never walked line by line, so a large file costs what
one copy of it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import HTTP

from serving.errors.requests import request_field

MAX_FIELDS = 50
MAX_HEAD_BYTES = 8192  # of one part
_HEADERS = BytesHeaderParser(policy=HTTP)


@dataclass(slots=True)
class Upload:
    filename: str
    content: bytes


@dataclass(slots=True)
class Form:
    fields: dict[str, str] = field(default_factory=dict)
    file: Upload | None = None


def parse_form(content_type: str, body: bytes) -> Form:
    """The form; a body that is no form is the file itself (curl --data-binary). Raises `BadInput` REQUEST_FIELD."""
    if not content_type.lower().startswith("multipart/form-data"):
        return Form(file=Upload("upload", body) if body else None)
    head = _HEADERS.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace"))
    boundary = head.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise request_field("Content-Type", "表单无法解析, 缺少 boundary", "names no boundary to parse the form by")
    form = Form()
    for place, (start, end) in enumerate(_parts(body, b"--" + boundary.encode("latin-1", "replace"))):
        if place >= MAX_FIELDS:
            raise request_field("form", f"表单最多 {MAX_FIELDS} 个字段", f"has at most {MAX_FIELDS} fields")
        _take(form, body, start, end)
    return form


def _parts(body: bytes, delimiter: bytes) -> list[tuple[int, int]]:
    """Where each part begins and ends; the last delimiter must be the closing one."""
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if at == 1:
        raise _broken()
    found: list[tuple[int, int]] = []
    while True:
        after = at + len(delimiter)
        if body[after : after + 2] == b"--":
            return found
        start = body.find(b"\r\n", after)  # blanks may follow the delimiter
        end = body.find(b"\r\n" + delimiter, start) if start >= 0 else -1
        if end < 0 or body[after:start].strip():
            raise _broken()
        found.append((start + 2, end))
        at = end + 2
        if len(found) > MAX_FIELDS:
            return found


def _take(form: Form, body: bytes, start: int, end: int) -> None:
    # The part's headers end with an empty line, which is its very first where it has none.
    bare = body.startswith(b"\r\n", start)
    empty = start if bare else body.find(b"\r\n\r\n", start, min(end, start + MAX_HEAD_BYTES))
    if empty < 0:
        raise _broken()
    head: Message = _HEADERS.parsebytes(body[start : empty + 2])
    if str(head.get("content-transfer-encoding", "binary")).strip().lower() not in ("binary", "8bit", "7bit"):
        raise request_field("form", "各部分须为二进制原文", "must carry its parts as they are, not transfer-encoded")
    content = body[empty + (2 if bare else 4) : end]
    name = str(head.get_param("name", "", header="content-disposition"))
    filename = head.get_filename()
    if filename is None:
        form.fields[name[:100]] = content.decode("utf-8", "replace")[:10_000]
    elif form.file is None or name == "file":
        form.file = Upload(filename[:200], content)


def _broken() -> Exception:
    return request_field("form", "表单不完整或 boundary 不符", "ends too early, or does not fit its boundary")
