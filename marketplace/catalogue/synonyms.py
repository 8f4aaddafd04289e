"""The synonym table of search: industrial words in Chinese and English that mean the same (`synonyms.yaml`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from marketplace.catalogue.words import runs


class Synonyms:
    """`of(phrase)` answers the other members of every group that holds the phrase, in canonical form."""

    def __init__(self, groups: list[list[str]]) -> None:
        self._others: dict[str, set[str]] = {}
        for group in groups:
            members = {canonical_phrase(member) for member in group} - {""}
            for member in members:
                self._others.setdefault(member, set()).update(members - {member})
        self._longest_chinese = max((len(word) for word in self._others if not word.isascii()), default=0)
        self._longest_latin = max((word.count(" ") + 1 for word in self._others if word.isascii()), default=1)

    def of(self, phrase: str) -> frozenset[str]:
        return frozenset(self._others.get(canonical_phrase(phrase), ()))

    def split_chinese(self, run: str) -> list[tuple[str, bool]]:
        """Cut a run at the words known (longest first): `[(piece, known)]`. What lies between stays one piece."""
        pieces: list[tuple[str, bool]] = []
        start = position = 0
        while position < len(run):
            longest = min(self._longest_chinese, len(run) - position)
            size = next((n for n in range(longest, 1, -1) if run[position : position + n] in self._others), 0)
            if size:
                if start < position:
                    pieces.append((run[start:position], False))
                pieces.append((run[position : position + size], True))
                start = position = position + size
            else:
                position += 1
        if start < len(run):
            pieces.append((run[start:], False))
        return pieces

    def join_latin(self, words: list[str]) -> list[str]:
        """Neighbouring words that together are one known phrase become one: ["steel", "plate"] → ["steel plate"]."""
        joined: list[str] = []
        position = 0
        while position < len(words):
            longest = min(self._longest_latin, len(words) - position)
            sizes = (n for n in range(longest, 1, -1) if " ".join(words[position : position + n]) in self._others)
            size = next(sizes, 1)
            joined.append(" ".join(words[position : position + size]))
            position += size
        return joined


def canonical_phrase(phrase: str) -> str:
    """Folded, stemmed, words separated by one space."""
    return " ".join(runs(phrase))


@cache
def shipped_synonyms() -> Synonyms:
    """The table that ships with the market."""
    text = (Path(__file__).parent / "synonyms.yaml").read_text(encoding="utf-8")
    return Synonyms(yaml.safe_load(text))
