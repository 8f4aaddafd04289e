"""A written query, understood: groups of alternatives, each alternative a set of terms that must occur together."""

from __future__ import annotations

from dataclasses import dataclass

from marketplace.catalogue.synonyms import Synonyms
from marketplace.catalogue.words import MAX_QUERY_CHARACTERS, STOP_WORDS, phrase_terms, runs

SYNONYM_WEIGHT = 0.6


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to say what a group means; `weight` 1 for the words as written, less for a synonym."""

    terms: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Group:
    """What one word of the query means. A `soft` group adds to the score but excludes nothing."""

    alternatives: tuple[Alternative, ...]
    soft: bool = False


def parse_query(text: str, synonyms: Synonyms) -> list[Group]:
    """Groups in the order written; [] for a query without any word. Over-long queries are cut at 200 characters."""
    words: list[str] = []
    pieces: list[tuple[str, bool]] = []
    for run in runs(text[:MAX_QUERY_CHARACTERS]):
        if run.isascii():
            words.append(run)
            continue
        pieces += [(word, True) for word in synonyms.join_latin(words)]
        words = []
        pieces += synonyms.split_chinese(run)
    pieces += [(word, True) for word in synonyms.join_latin(words)]
    meant = [piece for piece in pieces if piece[0] not in STOP_WORDS] or pieces
    hard_exists = any(known or len(piece) <= 2 for piece, known in meant)
    return [_group(piece, known, hard_exists, synonyms) for piece, known in meant]


def _group(piece: str, known: bool, hard_exists: bool, synonyms: Synonyms) -> Group:
    if not known and len(piece) > 2:
        # Chinese that the table cannot cut: each bigram by itself says something, none of them everything.
        each = tuple(Alternative((term,), 1.0) for term in phrase_terms(piece) if term not in STOP_WORDS)
        return Group(each or (Alternative(phrase_terms(piece), 1.0),), soft=hard_exists)
    alternatives = [Alternative(phrase_terms(piece), 1.0)]
    alternatives += [Alternative(phrase_terms(other), SYNONYM_WEIGHT) for other in sorted(synonyms.of(piece))]
    return Group(tuple(alternatives))
