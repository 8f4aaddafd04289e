"""The bundle source of the embedded market: its catalogue tables, read into memory after every change of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Engine, Select
from sqlalchemy import select as select_columns
from sqlmodel import col, select

from marketplace.catalogue.tables import Alias, Listing, ModelVersion, Rollout
from marketplace.db import reading
from model_store.errors import Refusal
from serving.catalogue import Catalogue, Entry, Split
from serving.errors.access import adapter_base_missing
from serving.ports import ServedVersion

RUNNABLE_STATES = ("inspected", "in_review", "listed")
BASE_STATES = (*RUNNABLE_STATES, "retired")  # what was sold on a base outlives the sale of the base
_log = logging.getLogger("algomart.catalogue")


class Stored(Protocol):
    """What a bundle is found by: its own digest, and that of its blob."""

    @property
    def digest(self) -> str: ...
    @property
    def blob(self) -> str: ...


Materialise = Callable[[Stored], Path]


class VersionRow(NamedTuple):
    """What serving needs of a version: a manifest and a report are read for none of ten thousand."""

    id: str
    listing_id: str
    number: int
    digest: str
    blob: str
    state: str
    adapter_of: dict[str, Any] | None


class ListingRow(NamedTuple):
    id: str
    organisation_id: str
    name: str
    visibility: str


_VERSION = select_columns(
    *(getattr(ModelVersion, name) for name in VersionRow._fields[:-1]), col(ModelVersion.manifest)["adapter_of"]
)
_LISTING = select_columns(*(getattr(Listing, name) for name in ListingRow._fields))


class CatalogueSource(Catalogue):
    """Implements `serving.ports.BundleSource` over the catalogue tables, refreshed after every change of them."""

    def __init__(self, engine: Engine, materialise: Materialise) -> None:
        """`materialise(version)` answers the unpacked, immutable bundle folder, unpacking it on first use."""
        super().__init__()
        self._engine = engine
        self._materialise = materialise
        self._lock = threading.Lock()

    def refresh(self, listing_id: str | None = None) -> None:
        """Read one listing and what runs on it, or all of them, from the database again."""
        with self._lock:
            if listing_id is None:
                self.replace([self._entry_of(*row) for row in self._read(None)])
                return
            changed = self.listings_with(listing_id)
            self.replace([self._entry_of(*row) for each in changed for row in self._read(each)], changed)

    async def fetch(self, served: ServedVersion) -> None:
        """See the port: bundles were unpacked when the catalogue was read."""

    def _read(self, listing_id: str | None) -> list[tuple[ListingRow, list[VersionRow], list[Alias], Rollout | None]]:
        listings: Select[Any] = _LISTING.where(col(Listing.status).not_in(("retired", "withdrawn")))
        versions: Select[Any] = _VERSION.where(col(ModelVersion.state).in_(RUNNABLE_STATES))
        aliases = select(Alias)
        rollouts = select(Rollout)
        if listing_id is not None:
            listings = listings.where(col(Listing.id) == listing_id)
            versions = versions.where(col(ModelVersion.listing_id) == listing_id)
            aliases = aliases.where(Alias.listing_id == listing_id)
            rollouts = rollouts.where(Rollout.listing_id == listing_id)
        versions_of: dict[str, list[VersionRow]] = {}
        aliases_of: dict[str, list[Alias]] = {}
        with reading(self._engine) as session:
            for version in map(VersionRow._make, session.connection().execute(versions)):
                versions_of.setdefault(version.listing_id, []).append(version)
            for alias in session.exec(aliases):
                aliases_of.setdefault(alias.listing_id, []).append(alias)
            rollout_of = {rollout.listing_id: rollout for rollout in session.exec(rollouts)}
            rows = [ListingRow(*row) for row in session.connection().execute(listings)]
        return [(row, versions_of.get(row.id, []), aliases_of.get(row.id, []), rollout_of.get(row.id)) for row in rows]

    def _entry_of(
        self, listing: ListingRow, versions: list[VersionRow], aliases: list[Alias], rollout: Rollout | None
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

    def _base_of(self, version: VersionRow) -> ServedVersion | None:
        """The base that an adapter runs on, also where it is retired since; `NotFound` where it is withdrawn."""
        of = version.adapter_of
        if not of:
            return None
        found = select(Listing, ModelVersion).where(ModelVersion.listing_id == Listing.id)
        found = found.where(Listing.name == of["name"], ModelVersion.digest == of["digest"])
        with reading(self._engine) as session:
            row = session.exec(found.where(col(ModelVersion.state).in_(BASE_STATES))).first()
        if row is None:
            raise adapter_base_missing(of["name"], of["version"])
        return self._served(*row, None)

    def _served(
        self, listing: Listing | ListingRow, version: ModelVersion | VersionRow, base: ServedVersion | None
    ) -> ServedVersion:
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
