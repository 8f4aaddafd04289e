"""multipart/form-data for the one upload that serving takes: a file and a few text fields, from a body in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

from serving.errors import request_field

MAX_FIELDS = 50


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
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    if not message.is_multipart():
        raise request_field("Content-Type", "表单无法解析", "the form cannot be parsed: check its boundary")
    form = Form()
    for place, part in enumerate(message.iter_parts()):
        if place >= MAX_FIELDS:
            raise request_field("form", f"表单最多 {MAX_FIELDS} 个字段", f"a form has at most {MAX_FIELDS} fields")
        _take(form, part)
    return form


def _take(form: Form, part: Message) -> None:
    name = str(part.get_param("name", "", header="content-disposition"))
    content = part.get_payload(decode=True)
    body = content if isinstance(content, bytes) else b""
    filename = part.get_filename()
    if filename is not None:
        if form.file is None or name == "file":
            form.file = Upload(filename[:200], body)
    else:
        form.fields[name[:100]] = body.decode("utf-8", "replace")[:10_000]
