"""What a node may serve, in memory: names and selectors resolved without database, disk or network.

Who may run what: a listed version of a public listing, everybody; an inspected or submitted one, its own organisation
(in the memory-limited worker, `trusted=False`), and the operator while it is under review; a private one, only its own
organisation. A market fills it from its tables, a remote node from what the market tells it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from model_store.names import path_name
from serving.errors.access import model_not_found
from serving.ports import Principal, ServedVersion


@dataclass(frozen=True, slots=True)
class Split:
    """How calls of the bare name are shared: `canary` gets `share` of them; the stable one may carry a shadow."""

    stable: ServedVersion
    canary: ServedVersion | None
    share: float

    def pick(self) -> ServedVersion:
        if self.canary is not None and random.random() < self.share:  # noqa: S311 - a share, no secret
            return self.canary
        return self.stable

    @property
    def answering(self) -> list[ServedVersion]:
        """Whom calls may meet, the stable version first; a shadow's answers are nobody's."""
        return [self.stable] if self.canary is None else [self.stable, self.canary]


@dataclass(frozen=True, slots=True)
class Entry:
    """One listing as it is served. `versions` {number: (state, served)}."""

    listing_id: str
    owner: str
    name: str
    private: bool
    versions: dict[int, tuple[str, ServedVersion]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    split: Split | None = None
    newest_listed: ServedVersion | None = field(init=False)  # what all who may see the listing get by its bare name

    def __post_init__(self) -> None:
        listed = [number for number, (state, _) in self.versions.items() if state == "listed"]
        newest = self.versions[max(listed)][1] if listed else None
        object.__setattr__(self, "newest_listed", newest)

    def seen_by(self, principal: Principal, number: int) -> bool:
        state, _ = self.versions[number]
        if principal.organisation == self.owner:
            return True
        if self.private:
            return False
        return state == "listed" or (principal.role == "operator" and state == "in_review")

    def latest_for(self, principal: Principal) -> ServedVersion | None:
        """By the rollout where there is one, else the newest listed version; only where none is listed, the newest that
        this caller may run."""
        if self.split is not None and self._open_to(principal):
            return self.split.pick()
        return self._newest_for(principal)

    def answering(self, principal: Principal) -> list[ServedVersion]:
        """Every version that a call of the bare name may meet, the stable one first; [] for who may run none. It
        depends on no chance, as `latest_for` does."""
        if self.split is not None and self._open_to(principal):
            return self.split.answering
        newest = self._newest_for(principal)
        return [] if newest is None else [newest]

    def _open_to(self, principal: Principal) -> bool:
        return not self.private or principal.organisation == self.owner

    def _newest_for(self, principal: Principal) -> ServedVersion | None:
        if self.newest_listed is not None:
            return self.newest_listed if self._open_to(principal) else None
        seen = [number for number in self.versions if self.seen_by(principal, number)]
        return self.versions[max(seen)][1] if seen else None

    def runs_on(self, listing_id: str) -> bool:
        """Whether a version is an adapter on a version of that listing."""
        bases = (served.base for _, served in self.versions.values())
        return any(base is not None and base.listing_id == listing_id for base in bases)


class Catalogue:
    """Implements `serving.ports.BundleSource` but for `fetch`. Its tables are replaced, never changed in place, so that
    reading needs no lock; whoever changes it does so from one thread at a time."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}  # both spellings → entry
        self._names: dict[str, str] = {}  # listing id → vendor/name

    def resolve(self, name: str, selector: str | None, principal: Principal) -> ServedVersion:
        """See the port. `NotFound` MODEL_NOT_FOUND also hides what the caller may not see."""
        entry = self._entries.get(name)
        served: ServedVersion | None = None
        if entry is not None:
            if selector is None or selector in ("", "latest"):
                served = entry.latest_for(principal)
            else:
                text = selector[1:] if selector[:1] == "v" and selector[1:].isdigit() else selector
                number = (
                    int(text) if text.isascii() and text.isdigit() and len(text) < 9 else entry.aliases.get(selector)
                )
                if number in entry.versions and entry.seen_by(principal, number):
                    served = entry.versions[number][1]
        if served is None:
            raise model_not_found(name, selector)
        return served

    def split(self, name: str) -> Split | None:
        """How calls of this bare name are shared just now; None where no rollout is under way."""
        entry = self._entries.get(name)
        return None if entry is None else entry.split

    def answering(self, name: str, principal: Principal) -> Sequence[ServedVersion]:
        """See the port. `NotFound` as `resolve`."""
        entry = self._entries.get(name)
        found = [] if entry is None else entry.answering(principal)
        if not found:
            raise model_not_found(name, None)
        return found

    def visible(self, principal: Principal) -> Sequence[ServedVersion]:
        """See the port."""
        seen = (entry.answering(principal)[:1] for entry in self.entries())
        return sorted((served for first in seen for served in first), key=lambda served: served.name)

    def entries(self) -> list[Entry]:
        return [entry for name, entry in self._entries.items() if name == entry.name]

    def entry(self, listing_id: str) -> Entry | None:
        name = self._names.get(listing_id)
        return None if name is None else self._entries.get(name)

    def listings_with(self, listing_id: str) -> set[str]:
        """That listing, and those of the adapters that run on it."""
        return {listing_id, *(entry.listing_id for entry in self.entries() if entry.runs_on(listing_id))}

    def replace(self, entries: Iterable[Entry], listing_ids: Iterable[str] | None = None) -> None:
        """Take `entries` in the place of these listings (one without an entry is gone), or of everything (None)."""
        changed, names = (dict(self._entries), dict(self._names)) if listing_ids is not None else ({}, {})
        for listing_id in listing_ids or ():
            old = names.pop(listing_id, None)
            if old is not None:
                changed.pop(old, None)
                changed.pop(path_name(old), None)
        for entry in entries:
            changed[entry.name] = changed[path_name(entry.name)] = entry
            names[entry.listing_id] = entry.name
        self._entries, self._names = changed, names
