"""Uploaded samples that cannot be read are refused, never an error of ours."""

from __future__ import annotations

import io
import zipfile

import pytest

from marketplace.choosing.samples import parse_upload
from model_store.errors import BadInput


def test_a_zip_with_a_damaged_picture_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(25):
            archive.writestr(f"ok/{number}.png", bytes(range(256)) * 20)
    content = bytearray(buffer.getvalue())
    first = 30 + len("ok/0.png")
    content[first : first + 12] = b"\xff" * 12
    with pytest.raises(BadInput) as refused:
        parse_upload("a.zip", bytes(content))
    assert refused.value.code == "SAMPLES_UNREADABLE"
