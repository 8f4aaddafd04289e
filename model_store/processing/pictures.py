"""Pictures: decoded within bounds, never by a decoder nobody needs; resized as a manifest says."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from model_store import step_specs as m
from model_store.errors import BadInput

MAX_IMAGE_PIXELS = 50_000_000


def open_picture(cell: Any, name: str, place: int) -> Image.Image:
    """Encoded bytes, or base64 text of them (a data: URL too)."""
    try:
        content = bytes(cell) if isinstance(cell, (bytes, bytearray, memoryview)) else _from_base64(str(cell))
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP"))
        if picture.width * picture.height > MAX_IMAGE_PIXELS:
            raise ValueError(f"{picture.width}×{picture.height} pixels, at most {MAX_IMAGE_PIXELS}")
        picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(
            "IMAGE_UNREADABLE",
            zh=f"第 {place + 1} 行“{name}”不是可读的图片",
            en=f"row {place + 1}: {name!r} is no picture that can be read ({str(error)[:80]})",
            remedy_zh="请提供 PNG、JPEG 或 BMP, JSON 中用 base64 编码",
            remedy_en="give PNG, JPEG or BMP; base64 of it in JSON",
            field=name,
        ) from error
    return picture


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def fit_picture(picture: Image.Image, step: m.DecodeImage) -> Image.Image:
    size = (step.width, step.height)
    if step.fit == "stretch":
        return picture.resize(size, Image.Resampling.BILINEAR)
    wide, high = step.width / picture.width, step.height / picture.height
    ratio = max(wide, high) if step.fit == "center_crop" else min(wide, high)
    inner = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    resized = picture.resize(inner, Image.Resampling.BILINEAR)
    left, top = (inner[0] - step.width) // 2, (inner[1] - step.height) // 2
    return resized.crop((left, top, left + step.width, top + step.height))
