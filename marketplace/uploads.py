"""A form with files, counted while it comes in: refused before it fills the disk, read after its caller is known."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.types import Message

from model_store.errors import Refusal

FORM_BYTES = 1 << 20  # what a form may weigh beside its files


async def bounded_form(
    request: Request,
    file_bytes: int,
    *,
    files: int,
    fields: int,
    too_large: Callable[[], Refusal],
    invalid: Callable[[str], Refusal],
) -> FormData:
    """The form; `too_large()` is raised by the declared length at once, else as soon as more has come in."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:18]) > file_bytes + FORM_BYTES:
        raise too_large()
    left = file_bytes + FORM_BYTES

    async def counted() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_large()
        return message

    try:
        return await Request(request.scope, counted).form(max_files=files, max_fields=fields)
    except MultiPartException as error:
        raise invalid(str(error.message)) from error


@contextmanager
def scratch_folder(home: Path, stem: str) -> Iterator[Path]:
    """A folder of its own below `home/tmp`, gone afterwards whatever happens."""
    folder = home / "tmp" / f"{stem}-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(source: BinaryIO, target: Path, limit: int, too_large: Callable[[], Refusal]) -> Path:
    """A copy of an uploaded file of at most `limit` bytes."""
    source.seek(0, 2)
    if source.tell() > limit:
        raise too_large()
    source.seek(0)
    with target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return target
