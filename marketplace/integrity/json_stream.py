"""JSON read value by value, for documents larger than memory should have to hold."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 16  # bytes
MAX_VALUE = 1 << 28  # characters of one value that is read whole
_SPACE = " \t\n\r"
_ENDS = frozenset(_SPACE + ",:]}")


class JsonStream:
    """One JSON text in UTF-8. Everything raises `ValueError` where it is not that, or a value is over `MAX_VALUE`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._text, self._at = "", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    def value(self) -> Any:
        """The next value, whole."""
        self._peek()
        while True:
            try:
                found, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError:  # cut off at the end of what was read, perhaps
                if not self._read_on():
                    raise
                continue
            if self._text[end : end + 1] in _ENDS or not self._read_on():  # else a number may go on
                self._at = end
                return found

    def items(self) -> Iterator[Any]:
        """The elements of an array."""
        for _ in self._each("[", "]"):
            yield self.value()

    def keys(self) -> Iterator[str]:
        """The keys of an object; before the next one, its value must be taken. The same key may come twice."""
        for _ in self._each("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"a key is not a string: {key!r:.80}")
            self._expect(":")
            yield key

    def finish(self) -> None:
        """Nothing may follow."""
        if self._peek():
            raise ValueError(f"more follows where the document should end: {self._text[self._at : self._at + 40]!r}")

    def _each(self, opening: str, closing: str) -> Iterator[None]:
        self._expect(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            if self._peek() == closing:
                self._at += 1
                return
            self._expect(",")

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise ValueError(f"{char!r} expected, found {self._text[self._at : self._at + 40]!r}")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is not space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Twice as much of what is not used yet, so that a large value is not tried too often; False at the end."""
        left = self._text[self._at :]
        if len(left) > MAX_VALUE:
            raise ValueError("one value is larger than a pack's may be")
        content = self._stream.read(max(_CHUNK, len(left)))
        self._text, self._at = left + self._utf8.decode(content, final=not content), 0
        return bool(content)
