"""Search over the catalogue: an inverted index in memory, with facets and counts.

Kept in memory and rebuilt from the listings at start, because at 10,000 listings the SQL form (joining a term table and
counting a dozen facet axes) costs about ten times as much as bit operations on one integer per term and facet value.
Bit i of every set stands for document i. A public listing is found by all; others by their own organisation only.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from marketplace.catalogue.query import Group, parse_query
from marketplace.catalogue.synonyms import Synonyms, shipped_synonyms
from marketplace.catalogue.words import index_terms

_log = logging.getLogger("algomart.search")
AXES = ("tier", "task", "modality", "link", "chain", "scenario", "licence", "vendor", "family", "filing", "price")
SORTS = ("relevance", "new", "name", "price")
MAX_PAGE_SIZE = 100
MIN_PREFIX_CHARACTERS = 3


@dataclass(slots=True)
class Document:
    """What is found: `fields` are (text, weight) to index, `facets` (axis, value), `card` what a result shows."""

    listing_id: str
    owner: str
    listed: bool
    fields: list[tuple[str, float]]
    facets: list[tuple[str, str]]
    card: dict[str, Any]
    price_micro: int | None = None
    created_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """One page of `cards`, `total` over all pages, and for each axis the counts of its values, most frequent first."""

    cards: list[dict[str, Any]]
    total: int
    facets: dict[str, list[dict[str, Any]]]


@dataclass(slots=True)
class _Index:
    documents: list[Document | None] = field(default_factory=list)
    position: dict[str, int] = field(default_factory=dict)
    postings: dict[str, dict[int, float]] = field(default_factory=dict)
    terms_of: dict[int, set[str]] = field(default_factory=dict)
    term_bits: dict[str, int] = field(default_factory=dict)
    facet_bits: dict[str, dict[str, int]] = field(default_factory=lambda: {axis: {} for axis in AXES})
    public: int = 0
    owned: dict[str, int] = field(default_factory=dict)
    latin: list[str] = field(default_factory=list)


class SearchIndex:
    """Thread-safe: one lock around changes and searches, each of which takes milliseconds. The whole is read and put
    together beside the old one, which answers meanwhile."""

    def __init__(
        self,
        load: Callable[[Engine, str | None], Iterable[Document]] | None = None,
        synonyms: Synonyms | None = None,
    ) -> None:
        """`load(engine, listing_id)` reads the documents of one listing (none: it is gone) or of all (None)."""
        self._load = load
        self._synonyms = synonyms or shipped_synonyms()
        self._index = _Index()
        self._lock = threading.RLock()
        self._refreshing = threading.Lock()  # so that what was read first is put first
        self._built = threading.Event()
        self._built.set()

    def refresh_behind(self, engine: Engine) -> None:
        """Read all of them in a thread of its own; searches wait until that is done."""
        self._built.clear()

        def build() -> None:
            try:
                self.refresh(engine)
            except Exception:  # calls go on; the next change is found, and a restart reads everything again
                _log.exception("the search index could not be read")
            finally:
                self._built.set()

        threading.Thread(target=build, name="search", daemon=True).start()

    def refresh(self, engine: Engine, listing_id: str | None = None) -> None:
        """Read one listing, or all of them, from the database again."""
        if self._load is None:
            return
        with self._refreshing:
            documents = list(self._load(engine, listing_id))
            if listing_id is None:
                self.rebuild(documents)
                return
            with self._lock:
                self.remove(listing_id)
                for document in documents:
                    self.put(document)

    def rebuild(self, documents: Iterable[Document]) -> None:
        index = _Index()
        for document in documents:
            _put(index, document)
        with self._lock:
            self._index = index

    def put(self, document: Document) -> None:
        """Add or replace one document."""
        with self._lock:
            self.remove(document.listing_id)
            _put(self._index, document)

    def remove(self, listing_id: str) -> None:
        """Forget a document, if it is there. Its place stays empty until the next rebuild."""
        with self._lock:
            index = self._index
            place = index.position.pop(listing_id, None)
            if place is None:
                return
            document = index.documents[place]
            assert document is not None
            keep = ~(1 << place)
            index.documents[place] = None
            for term in index.terms_of.pop(place):
                index.postings[term].pop(place, None)
                index.term_bits.pop(term, None)
            for axis, value in document.facets:
                index.facet_bits[axis][value] &= keep
            index.public &= keep
            index.owned[document.owner] &= keep

    def search(
        self,
        text: str = "",
        *,
        filters: Mapping[str, Iterable[str]] | None = None,
        organisation_id: str = "",
        mine: bool = False,
        sort: str = "relevance",
        page: int = 1,
        page_size: int = 24,
    ) -> Found:
        """Find listings. `filters` {axis: values}: any of an axis' values, all axes. `mine`: only one's own.

        Facet counts of an axis leave its own filter aside, so that a shopper sees what else there is to tick.
        """
        self._built.wait()
        with self._lock:
            seen = self._index.owned.get(organisation_id, 0)
            if not mine:
                seen |= self._index.public
            scores: dict[int, float] = {}
            if groups := parse_query(text, self._synonyms):
                seen, scores = self._match(groups, seen)
            wanted = {axis: list(values) for axis, values in (filters or {}).items() if axis in AXES}
            hits = {axis: self._any_of(axis, values) for axis, values in wanted.items() if values}
            found = seen
            for bits in hits.values():
                found &= bits
            order = self._sorted(_places(found), scores, sort if groups or sort != "relevance" else "new")
            size = min(max(page_size, 1), MAX_PAGE_SIZE)
            first = (max(page, 1) - 1) * size
            cards = [doc.card for place in order[first : first + size] if (doc := self._index.documents[place])]
            return Found(cards, len(order), self._facets(seen, hits))

    def card(self, listing_id: str) -> dict[str, Any] | None:
        """The card of one listing, whoever asks."""
        self._built.wait()
        with self._lock:
            place = self._index.position.get(listing_id)
            document = self._index.documents[place] if place is not None else None
            return document.card if document else None

    def _match(self, groups: list[Group], seen: int) -> tuple[int, dict[int, float]]:
        """The documents of `seen` that satisfy every hard group (else: as many as any document does), with scores."""
        total_documents = max(1, len(self._index.position))
        hits_of: list[int] = []
        scores: dict[int, float] = {}
        for group in groups:
            group_bits = 0
            best: dict[int, float] = {}
            for alternative in group.alternatives:
                for terms, weight in self._spellings(alternative.terms, alternative.weight):
                    bits = seen
                    for term in terms:
                        bits &= self._bits(term)
                    if not bits:
                        continue
                    group_bits |= bits
                    rarity = math.log(1 + total_documents / bits.bit_count())
                    postings = [self._index.postings[term] for term in terms]
                    for place in _places(bits):
                        score = weight * rarity * sum(p[place] for p in postings) / len(postings)
                        if score > best.get(place, 0.0):
                            best[place] = score
            for place, score in best.items():
                scores[place] = scores.get(place, 0.0) + score
            if not group.soft:
                hits_of.append(group_bits)
        return _in_most(hits_of), scores

    def _spellings(self, terms: tuple[str, ...], weight: float) -> Iterable[tuple[tuple[str, ...], float]]:
        """The terms as they are, and for one unfinished latin word ("bear") the words that it begins."""
        yield terms, weight
        word = terms[0] if len(terms) == 1 else ""
        if weight == 1.0 and word.isascii() and len(word) >= MIN_PREFIX_CHARACTERS:
            if not self._index.latin:
                self._index.latin = [term for term in self._index.postings if term.isascii()]
            for term in self._index.latin:
                if term != word and term.startswith(word):
                    yield (term,), weight / 2

    def _bits(self, term: str) -> int:
        bits = self._index.term_bits.get(term)
        if bits is None:
            places = self._index.postings.get(term, {})
            buffer = bytearray(len(self._index.documents) // 8 + 1)
            for place in places:
                buffer[place >> 3] |= 1 << (place & 7)
            bits = int.from_bytes(buffer, "little")
            if places:
                self._index.term_bits[term] = bits
        return bits

    def _any_of(self, axis: str, values: list[str]) -> int:
        bits = 0
        for value in values:
            bits |= self._index.facet_bits[axis].get(value, 0)
        return bits

    def _facets(self, seen: int, hits: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
        facets = {}
        for axis in AXES:
            base = seen
            for other, bits in hits.items():
                if other != axis:
                    base &= bits
            counts = [(value, (bits & base).bit_count()) for value, bits in self._index.facet_bits[axis].items()]
            ordered = sorted((pair for pair in counts if pair[1]), key=lambda pair: (-pair[1], pair[0]))
            facets[axis] = [{"value": value, "count": count} for value, count in ordered]
        return facets

    def _sorted(self, places: list[int], scores: dict[int, float], sort: str) -> list[int]:
        documents = self._index.documents

        def key(place: int) -> tuple[Any, ...]:
            document = documents[place]
            assert document is not None
            name = document.card.get("name", "")
            if sort == "price":
                return (document.price_micro is None, document.price_micro or 0, name)
            if sort == "name":
                return (name,)
            if sort == "new":
                return (-document.created_at_ms, name)
            return (-scores.get(place, 0.0), name)

        return sorted(places, key=key)


def _put(index: _Index, document: Document) -> None:
    """Add a document that is not there."""
    place = len(index.documents)
    bit = 1 << place
    index.documents.append(document)
    index.position[document.listing_id] = place
    weights: dict[str, float] = {}
    for text, weight in document.fields:
        for term in index_terms(text):
            weights[term] = weights.get(term, 0.0) + weight
    for term, weight in weights.items():
        index.postings.setdefault(term, {})[place] = weight
        index.term_bits.pop(term, None)
    index.terms_of[place] = set(weights)
    index.latin = []
    for axis, value in set(document.facets):
        values = index.facet_bits[axis]
        values[value] = values.get(value, 0) | bit
    if document.listed:
        index.public |= bit
    index.owned[document.owner] = index.owned.get(document.owner, 0) | bit


def _places(bits: int) -> list[int]:
    """The positions of the set bits, ascending."""
    raw = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    return [(i << 3) + b for i, byte in enumerate(raw) if byte for b in range(8) if byte >> b & 1]


def _in_most(sets: list[int]) -> int:
    """The members of all sets; where there are none, of as many sets as any member is in."""
    at_least = [~0] + [0] * len(sets)  # at_least[k]: members of k or more of the sets looked at so far
    for bits in sets:
        for k in range(len(sets), 0, -1):
            at_least[k] |= at_least[k - 1] & bits
    return next((bits for bits in reversed(at_least[1:]) if bits), 0)
