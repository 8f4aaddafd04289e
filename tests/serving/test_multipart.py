"""Forms: what clients send is read, what is cut short or malformed is refused, and a large file is one copy."""

from __future__ import annotations

import httpx
import pytest

from model_store.errors import BadInput
from serving.multipart import parse_form

KIND = "multipart/form-data; boundary=edge"


def encoded(**parts: object) -> tuple[str, bytes]:
    """As httpx sends it."""
    request = httpx.Request("POST", "http://x", **parts)  # type: ignore[arg-type]
    return request.headers["content-type"], request.read()


def test_files_and_fields_of_a_client_are_read_as_they_were_given() -> None:
    content = bytes(range(256)) * 100 + b"\r\n--not-the-edge\r\n\r\n"
    form = parse_form(*encoded(files={"file": ("样本 1.csv", content)}, data={"label_column": "故障", "empty": ""}))
    assert form.file is not None
    assert (form.file.filename, form.file.content) == ("样本 1.csv", content)
    assert form.fields == {"label_column": "故障", "empty": ""}


def test_the_part_named_file_is_the_file_and_a_preamble_is_passed_over() -> None:
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nA',
        b'--edge  \r\nContent-Disposition: form-data; name="file"; filename="b"\r\nContent-Type: text/csv\r\n\r\nB',
        b"--edge--\r\nepilogue",
    ]
    form = parse_form(KIND, b"preamble\r\n" + b"\r\n".join(parts))
    assert form.file is not None
    assert (form.file.filename, form.file.content) == ("b", b"B")


def test_a_body_that_is_no_form_is_the_file() -> None:
    form = parse_form("text/csv", b"a,b\n")
    assert form.file is not None
    assert form.file.content == b"a,b\n"
    assert parse_form("text/csv", b"").file is None


PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KIND, b""),
        (KIND, b"nothing of the kind"),
        (KIND, PART + b"half of a file"),
        (KIND, PART + b"whole\r\n--edg"),
        (KIND, b"--edge\r\nno headers' end\r\n--edge--"),
        (KIND, b"--edgewise\r\n\r\nx\r\n--edge--"),
        (KIND, b"--edge\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--edge--"),
        (KIND, b"--edge\r\n\r\nx\r\n" * 51 + b"--edge--"),
        ("multipart/form-data", PART + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=", PART + b"x\r\n--edge--"),
        ("multipart/form-data; boundary=" + "x" * 500, b""),
    ],
)
def test_what_is_cut_short_or_malformed_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(BadInput, match="REQUEST_FIELD"):
        parse_form(kind, body)
