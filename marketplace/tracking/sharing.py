"""What of the registry a caller may see, and whose files may be downloaded.

A registered model is seen by whoever sees its listing, a version by whoever sees the version's row; so a version that
is still being published is seen by nobody. The files of somebody else's listed version may be downloaded only under an
open licence: a listing sells calls, and a proprietary model's weights stay with its vendor. So do they inside a private
derivative that the market made of it for a customer: that is sold as calls too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.access import Actor
from marketplace.catalogue.listings import may_see, versions_seen
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.db import reading
from model_store.errors import Forbidden, Refusal
from model_store.manifest import WEIGHT_REUSING_RELATIONS
from model_store.names import split_name

MAX_STEPS = 20  # of a chain of derivatives
_OPEN_LICENCE = re.compile(
    r"(apache-2\.0|mit(-0)?|bsd-[234]-clause|isc|cc0-1\.0|cc-by(-sa)?-[0-9.]+|unlicense|mulanpsl-2\.0|mpl-2\.0|0bsd)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Shelf:
    """A registered model as one caller sees it: `versions` {number: row}."""

    own: bool
    listing: Listing | None
    versions: dict[int, ModelVersion]

    @property
    def seen(self) -> bool:
        return self.own or self.listing is not None


def shelves(engine: Engine, actor: Actor, names: Iterable[str]) -> dict[str, Shelf]:
    """`{registered name: Shelf}` for names in MLflow's spelling; what is no lawful name is seen by nobody."""
    canonical_of = {name: canonical for name in names if (canonical := canonical_or_none(name))}
    found: dict[str, Shelf] = {}
    with reading(engine) as session:
        rows = session.exec(select(Listing).where(col(Listing.name).in_(set(canonical_of.values()))))
        listings = {row.name: row for row in rows if may_see(row, actor)}
        for name, canonical in canonical_of.items():
            listing = listings.get(canonical)
            seen = versions_seen(session, listing, actor) if listing else []
            own = bool(actor.slug) and canonical.partition("/")[0] == actor.slug
            found[name] = Shelf(own, listing, {version.number: version for version in seen})
    return found


def shelf(engine: Engine, actor: Actor, name: str) -> Shelf:
    """As `shelves`, of one name."""
    return shelves(engine, actor, [name]).get(name, Shelf(False, None, {}))


def canonical_or_none(name: str) -> str | None:
    """`vendor/name` of a registered model, None where its name is not of the market."""
    if "/" in name:
        return None
    try:
        return "/".join(split_name(name))
    except Refusal:
        return None


def decide_download(shelf: Shelf, version: ModelVersion | None) -> bool:
    """Whether the caller may have a version's files: its own, or a listed one under an open licence."""
    if version is None:
        return False
    if shelf.own:
        return True
    return version.state == "listed" and _is_open(version)


def _is_open(version: ModelVersion) -> bool:
    return bool(_OPEN_LICENCE.fullmatch(str(version.manifest.get("licence", "")).strip()))


def holds_closed_weights(session: Session, actor: Actor, version: ModelVersion) -> bool:
    """Whether a version reuses the weights of somebody else's model, at any remove, that is under no open licence."""
    at, steps = version, 0
    while at.parent_version_id and at.relation in WEIGHT_REUSING_RELATIONS and steps < MAX_STEPS:
        parent = session.get(ModelVersion, at.parent_version_id)
        if parent is None:
            return True  # nobody can say any more under which licence
        if session.get_one(Listing, parent.listing_id).organisation_id != actor.organisation_id and not _is_open(
            parent
        ):
            return True
        at, steps = parent, steps + 1
    return False


def may_download(engine: Engine, actor: Actor, versions: Iterable[dict[str, Any]]) -> bool:
    """Whether any of these MLflow model versions lets the caller have the files that they cover.

    `Forbidden` WEIGHTS_NOT_SHARED where the caller sees one of them, but its licence keeps the files with its vendor.
    """
    rows = [(str(row["name"]), int(row["version"])) for row in versions]
    seen = shelves(engine, actor, {name for name, _ in rows})
    found = [(seen[name], seen[name].versions.get(number)) for name, number in rows if name in seen]
    with reading(engine) as session:
        for shelf, version in found:
            if version and decide_download(shelf, version) and not holds_closed_weights(session, actor, version):
                return True
    if any(version is not None for _, version in found):
        raise Forbidden(
            "WEIGHTS_NOT_SHARED",
            zh="该模型的许可证不允许下载权重, 可通过 API 调用",
            en="the licence of this model does not let its weights be downloaded; it can be called through the API",
            remedy_zh="请用 /v1/use 调用, 或向供应商索取",
            remedy_en="call it with /v1/use, or ask its vendor",
        )
    return False
