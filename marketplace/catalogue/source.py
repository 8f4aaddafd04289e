"""The bundle source of the embedded market: names answered from memory, no database and no disk on the call path.

Who may run what: a listed version of a public listing, everybody; an inspected or submitted one, its own organisation
(in the memory-limited worker, `trusted=False`), and the operator while it is under review; a private one, only its own
organisation. Retired and withdrawn versions are gone.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import col, select

from marketplace.catalogue.tables import Alias, Listing, ModelVersion, Rollout
from marketplace.db import reading
from model_store.errors import NotFound, Refusal
from model_store.names import path_name
from serving.errors import adapter_base_missing
from serving.ports import Principal, ServedVersion

RUNNABLE_STATES = ("inspected", "in_review", "listed")
BASE_STATES = (*RUNNABLE_STATES, "retired")  # what was sold on a base outlives the sale of the base
_log = logging.getLogger("algomart.catalogue")
Materialise = Callable[[ModelVersion], Path]


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
        if self.split is not None and (not self.private or principal.organisation == self.owner):
            return self.split.pick()
        if self.newest_listed is not None:
            return self.newest_listed if not self.private or principal.organisation == self.owner else None
        seen = [number for number in self.versions if self.seen_by(principal, number)]
        return self.versions[max(seen)][1] if seen else None


class CatalogueSource:
    """Implements `serving.ports.BundleSource` over the catalogue tables, refreshed after every change of them."""

    def __init__(self, engine: Engine, materialise: Materialise) -> None:
        """`materialise(version)` answers the unpacked, immutable bundle folder, unpacking it on first use."""
        self._engine = engine
        self._materialise = materialise
        self._entries: dict[str, Entry] = {}  # both spellings → entry; replaced, never changed in place
        self._names: dict[str, str] = {}  # listing id → vendor/name
        self._lock = threading.Lock()

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

    def visible(self, principal: Principal) -> Sequence[ServedVersion]:
        """Every latest version that the caller may run, ordered by name."""
        seen = (entry.latest_for(principal) for name, entry in self._entries.items() if name == entry.name)
        return sorted((served for served in seen if served is not None), key=lambda served: served.name)

    def refresh(self, listing_id: str | None = None) -> None:
        """Read one listing, or all of them, from the database again."""
        with self._lock:
            entries = [self._entry_of(*row) for row in self._read(listing_id)]
            if listing_id is None:
                changed: dict[str, Entry] = {}
                names: dict[str, str] = {}
            else:
                changed, names = dict(self._entries), dict(self._names)
                old = names.pop(listing_id, None)
                if old is not None:
                    changed.pop(old, None)
                    changed.pop(path_name(old), None)
            on_it = {id_ for id_, name in names.items() if _runs_on(changed[name], listing_id)}
            entries += [self._entry_of(*row) for each in on_it for row in self._read(each)]
            for entry in entries:
                changed[entry.name] = changed[path_name(entry.name)] = entry
                names[entry.listing_id] = entry.name
            self._entries, self._names = changed, names

    def _read(self, listing_id: str | None) -> list[tuple[Listing, list[ModelVersion], list[Alias], Rollout | None]]:
        listings = select(Listing).where(Listing.status.not_in(("retired", "withdrawn")))  # type: ignore[attr-defined]
        versions = select(ModelVersion).where(ModelVersion.state.in_(RUNNABLE_STATES))  # type: ignore[attr-defined]
        aliases = select(Alias)
        rollouts = select(Rollout)
        if listing_id is not None:
            listings = listings.where(Listing.id == listing_id)
            versions = versions.where(ModelVersion.listing_id == listing_id)
            aliases = aliases.where(Alias.listing_id == listing_id)
            rollouts = rollouts.where(Rollout.listing_id == listing_id)
        versions_of: dict[str, list[ModelVersion]] = {}
        aliases_of: dict[str, list[Alias]] = {}
        with reading(self._engine) as session:
            for version in session.exec(versions):
                versions_of.setdefault(version.listing_id, []).append(version)
            for alias in session.exec(aliases):
                aliases_of.setdefault(alias.listing_id, []).append(alias)
            rollout_of = {rollout.listing_id: rollout for rollout in session.exec(rollouts)}
            rows = list(session.exec(listings))
        return [(row, versions_of.get(row.id, []), aliases_of.get(row.id, []), rollout_of.get(row.id)) for row in rows]

    def _entry_of(
        self, listing: Listing, versions: list[ModelVersion], aliases: list[Alias], rollout: Rollout | None
    ) -> Entry:
        served = {}
        for version in versions:
            try:
                served[version.number] = (version.state, self._served(listing, version, self._base_of(version)))
            except (Refusal, OSError) as error:  # one damaged bundle must not take the shelf down with it
                _log.error("%s@%d cannot be served: %s", listing.name, version.number, error)
        return Entry(
            listing_id=listing.id,
            owner=listing.organisation_id,
            name=listing.name,
            private=listing.visibility == "private",
            versions=served,
            aliases={alias.alias: alias.number for alias in aliases},
            split=None if rollout is None else split_of(rollout, {n: each for n, (_, each) in served.items()}),
        )

    def _base_of(self, version: ModelVersion) -> ServedVersion | None:
        """The base that an adapter runs on, also where it is retired since; `NotFound` where it is withdrawn."""
        of = version.manifest.get("adapter_of")
        if not of:
            return None
        found = select(Listing, ModelVersion).where(ModelVersion.listing_id == Listing.id)
        found = found.where(Listing.name == of["name"], ModelVersion.digest == of["digest"])
        with reading(self._engine) as session:
            row = session.exec(found.where(col(ModelVersion.state).in_(BASE_STATES))).first()
        if row is None:
            raise adapter_base_missing(of["name"], of["version"])
        return self._served(*row, None)

    def _served(self, listing: Listing, version: ModelVersion, base: ServedVersion | None) -> ServedVersion:
        return ServedVersion(
            version_id=version.id,
            listing_id=listing.id,
            name=listing.name,
            version=version.number,
            bundle=self._materialise(version),
            digest=version.digest,
            trusted=version.state in ("listed", "retired") and listing.visibility == "public",
            owner=listing.organisation_id,
            base=base,
        )


def _runs_on(entry: Entry, listing_id: str | None) -> bool:
    """Whether an adapter of this listing runs on that one."""
    bases = (served.base for _, served in entry.versions.values())
    return any(base is not None and base.listing_id == listing_id for base in bases)


def split_of(rollout: Rollout, versions: dict[int, ServedVersion]) -> Split | None:
    """The rollout over the versions that are there; None where its stable one is not (withdrawn meanwhile).

    A canary that was taken back gets no calls, and the stable version keeps them all until the vendor ends the rollout.
    """
    stable = versions.get(rollout.stable)
    if stable is None:
        return None
    shadow = versions.get(rollout.shadow) if rollout.shadow is not None else None
    taken_back = rollout.canary is None or rollout.state == "rolled_back"
    canary = None if taken_back else versions.get(rollout.canary or 0)
    return Split(replace(stable, shadow=shadow), canary, rollout.canary_percent / 100)


def model_not_found(name: str, selector: str | None = None) -> Refusal:
    """The one refusal for a model that is not there or not to be seen by the caller."""
    shown = name[:100] + (f"@{selector[:40]}" if selector else "")
    return NotFound(
        "MODEL_NOT_FOUND",
        zh=f"没有名为“{shown}”的模型, 或您无权查看",
        en=f"there is no model {shown!r}, or you may not see it",
        remedy_zh="请在货架上搜索准确名称, 形式为 vendor/name 或 vendor/name@版本",
        remedy_en="search the shelf for its exact name: vendor/name or vendor/name@version",
        field="model",
    )
