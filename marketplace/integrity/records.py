"""Records of one width in a temporary file: appended in order, then read at any place; memory holds one portion."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PORTION = 2_048  # records


class Records:
    """A list of byte strings, each `width` bytes long, in a file in `folder` that has no name and goes when closed."""

    def __init__(self, folder: Path, width: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed by `close`)
        self._width = width
        self._waiting = bytearray()
        self._written = 0  # bytes

    def append(self, record: bytes) -> None:
        """`ValueError` for another width."""
        if len(record) != self._width:
            raise ValueError(f"a record of {len(record)} bytes, not {self._width}")
        self._waiting += record
        if len(self._waiting) >= _PORTION * self._width:
            self._flush()

    def __len__(self) -> int:
        return (self._written + len(self._waiting)) // self._width

    def __getitem__(self, at: int) -> bytes:
        """Raises IndexError."""
        if not 0 <= at < len(self):
            raise IndexError(at)
        self._flush()
        return os.pread(self._file.fileno(), self._width, at * self._width)

    def between(self, first: int, end: int) -> Iterator[bytes]:
        """Records `first` to `end`, the latter not counted; others may be appended meanwhile."""
        for start in range(first, end, _PORTION):
            self._flush()
            count = min(_PORTION, end - start)
            portion = os.pread(self._file.fileno(), count * self._width, start * self._width)
            for at in range(0, len(portion), self._width):
                yield portion[at : at + self._width]

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        left = memoryview(bytes(self._waiting))
        while left:
            done = os.pwrite(self._file.fileno(), left, self._written)
            self._written += done
            left = left[done:]
        self._waiting.clear()
