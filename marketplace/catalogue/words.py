"""Text to search terms: latin words, Chinese single characters and Chinese bigrams.

Chinese is written without spaces and its commonest words have two characters, which trigram full-text search cannot
find; a bigram index finds every one of them without a dictionary.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

MAX_QUERY_CHARACTERS = 200
_RUN = re.compile(r"[a-z0-9]+|[\u3400-\u9fff]+")
_STOP_TEXT = """
the a an of for and or in on to with by from is are my what which how model algorithm
模型 算法 的 了 和 与 及 我 我们 用 用于 如何 怎么 一个 请 找
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())


def fold(text: str) -> str:
    """NFKC and case-folded: full-width and half-width, upper and lower case become one."""
    return unicodedata.normalize("NFKC", text).casefold()


def stem(word: str) -> str:
    """A plural without its ending, so that "bearings" finds "bearing"; nothing cleverer."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def runs(text: str) -> list[str]:
    """Maximal runs of latin letters and digits (stemmed) and of Chinese characters, in order."""
    return [stem(run) if run.isascii() else run for run in _RUN.findall(fold(text))]


def bigrams(run: str) -> list[str]:
    """The bigrams of a Chinese run; the run itself where it is one character."""
    return [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]


@lru_cache(maxsize=8192)  # of ten thousand listings, most have the same tasks, links, features and licences
def index_terms(text: str) -> frozenset[str]:
    """Every term that a document with this text is found by."""
    terms: set[str] = set()
    for run in runs(text):
        if run.isascii():
            terms.add(run)
        else:
            terms.update(run)
            terms.update(bigrams(run))
    return frozenset(terms)


def phrase_terms(phrase: str) -> tuple[str, ...]:
    """The terms that a document must all have to hold `phrase`."""
    return tuple(term for run in runs(phrase) for term in ([run] if run.isascii() else bigrams(run)))
