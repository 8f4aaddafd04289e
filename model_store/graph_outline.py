"""A graph without its weights: what an ONNX file says of nodes, inputs and outputs, read without reading the rest.

`onnx.load` copies every byte of the weights, several times, and holds the interpreter while it does: 10 ms for 10 MB,
of a load that takes 15. Protocol Buffers say the length of a field before it, so what is not wanted is stepped over,
and the pages of the file that hold it are never touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import onnx

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, and where a TensorProto holds its values.
_GRAPH = 7
_INITIALIZER = 5
_VALUES = frozenset({4, 5, 6, 7, 9, 10, 11})
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BITS = 70


class _Field(NamedTuple):
    """A field of a message: it takes `start` to `end`, of which its content begins at `content`."""

    number: int
    kind: int
    start: int
    content: int
    end: int


def read_outline(model_path: Path) -> onnx.ModelProto:
    """The model with its initializers' names, types and shapes but none of their values; all else is whole.

    Only of the main graph: what bodies of operators hold is small. Raises `ValueError` where the file is no such
    message, and `OSError`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    with model_path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # of an empty file
            return onnx.ModelProto()
        with content:
            outline = _without(content, 0, len(content), (_GRAPH, _INITIALIZER))
    try:
        return onnx.ModelProto.FromString(outline)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _without(content: mmap.mmap, start: int, end: int, way: tuple[int, ...]) -> bytes:
    """The message from `start` to `end`, where the messages that `way` leads to (field by field) have no values."""
    kept: list[bytes] = []
    since = start  # what is kept is copied in as few pieces as can be
    for field in _fields(content, start, end):
        if not way and field.number in _VALUES:
            kept.append(content[since : field.start])
        elif way and field.number == way[0] and field.kind == _LENGTH:
            inner = _without(content, field.content, field.end, way[1:])
            kept += (content[since : field.start], _varint(field.number << 3 | _LENGTH), _varint(len(inner)), inner)
        else:
            continue
        since = field.end
    kept.append(content[since:end])
    return b"".join(kept)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        key, content_at = _read_varint(content, at, end)
        number, kind = key >> 3, key & 7
        if kind == _LENGTH:
            length, content_at = _read_varint(content, content_at, end)
        elif kind == _VARINT:
            _, after = _read_varint(content, content_at, end)
            length = after - content_at
        elif kind in _FIXED_BYTES:
            length = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"a field of wire type {kind} at byte {at}")
        after = content_at + length
        if after > end or number == 0:
            raise ValueError(f"a field at byte {at} is no field, or ends after its message")
        yield _Field(number, kind, at, content_at, after)
        at = after


def _read_varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number before byte {at} does not end")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
