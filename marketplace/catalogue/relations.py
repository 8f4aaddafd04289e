"""Where a derivative comes from, verified at registration: its parent is there, is visible, and its weights are reused.

Voucher eligibility passes only over relations that reuse the parent's weights. What a vendor declares is not enough:
the share of the parent's weights in the child is measured (`model_store.weights`), and a claim below `MIN_SHARE` is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlmodel import Session, select

from marketplace.catalogue.tables import Listing, ModelVersion
from model_store.bundle import MODEL, Bundle
from model_store.errors import Conflict, Unprocessable
from model_store.manifest import WEIGHT_REUSING_RELATIONS
from model_store.names import canonical
from model_store.weights import MIN_SHARE, measure_reuse
from serving.ports import Principal

if TYPE_CHECKING:
    from marketplace.market import Market

Inheritance = Literal["carries", "carries_nothing", "refused"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a listing is a derivative of, and which base its eligibility comes from ("" for none)."""

    parent_listing: str = ""
    root: str = ""


def decide_lineage(held: Lineage, new: Lineage) -> Literal["kept", "changed"]:
    """Eligibility belongs to a listing, so each version of it has the lineage of the first.

    Otherwise one true derivative published to a listing would make every other version of it eligible, and one
    `retrained` version would silently end the eligibility of the rest.
    """
    return "kept" if held == new else "changed"


def check_lineage_kept(session: Session, listing: Listing, descent: Descent | None, share: float) -> None:
    """`Conflict` LINEAGE_CHANGED where a further version descends from elsewhere than the listing's versions so far."""
    held = Lineage(listing.parent_listing_id or "", listing.root_base_listing_id or "")
    new = descent.lineage(share) if descent else Lineage()
    if decide_lineage(held, new) == "kept" or not has_versions(session, listing):
        return
    raise Conflict(
        "LINEAGE_CHANGED",
        zh=f"“{listing.name}”的已有版本来自另一基础模型 (或不沿用其权重), 新版本不能改变来源",
        en=f"the versions of {listing.name} descend from another base, or reuse its weights differently",
        remedy_zh="请以新的名称发布",
        remedy_en="publish it under another name",
        field="parent",
        details={"parent_listing": held.parent_listing, "root_base_listing": held.root},
    )


def has_versions(session: Session, listing: Listing) -> bool:
    """Whether any version of it is left that was not withdrawn."""
    left = select(ModelVersion.id).where(ModelVersion.listing_id == listing.id, ModelVersion.state != "withdrawn")
    return session.exec(left).first() is not None


def set_lineage(listing: Listing, descent: Descent | None, share: float) -> None:
    """Write the lineage of its first version onto a listing."""
    lineage = descent.lineage(share) if descent else Lineage()
    listing.parent_listing_id, listing.root_base_listing_id = lineage.parent_listing or None, lineage.root or None
    listing.relation = descent.relation if descent else None


def decide_inheritance(relation: str, share: float) -> Inheritance:
    """`retrained` carries nothing; a relation that claims reuse carries the root base if it is true, else is refused.

    `distilled` is taught by the parent's answers and holds none of its weights by construction: vouchers.md counts it
    among the relations that carry, but a measured share of 0 cannot tell it from any other model, so it carries
    nothing.
    """
    if relation not in WEIGHT_REUSING_RELATIONS or (relation == "distilled" and share < MIN_SHARE):
        return "carries_nothing"
    return "carries" if share >= MIN_SHARE else "refused"


@dataclass(frozen=True, slots=True)
class Descent:
    """A verified parent: `model_path` is its graph, `root` the listing that eligibility comes from."""

    listing_id: str
    version_id: str
    relation: str
    root: str
    name: str
    model_path: Path

    def measure(self, child: Bundle) -> float:
        """The measured share of reused weights; `Unprocessable` RELATION_NOT_TRUE where the claim does not hold."""
        if self.relation not in WEIGHT_REUSING_RELATIONS:
            return 0.0
        if child.manifest.adapter_of is not None:
            return 1.0  # it runs on the parent's own graph
        share = measure_reuse(self.model_path, child.model_path)
        if decide_inheritance(self.relation, share) == "refused":
            raise Unprocessable(
                "RELATION_NOT_TRUE",
                zh=f"声明的关系“{self.relation}”不成立: 只有 {share:.0%} 的父模型权重出现在该模型中",
                en=f"the declared relation {self.relation!r} does not hold: {share:.0%} of its parent is in it",
                remedy_zh=f"沿用父模型权重须达到 {MIN_SHARE:.0%}; 否则请声明 retrained",
                remedy_en=f"reuse at least {MIN_SHARE:.0%} of the parent's weights, or declare `retrained`",
                field="parent.relation",
            )
        return share

    def lineage(self, share: float) -> Lineage:
        """The parent's listing, and the root base where the measured share carries it."""
        carries = decide_inheritance(self.relation, share) == "carries"
        return Lineage(self.listing_id, self.root if carries else "")


def find_descent(session: Session, market: Market, bundle: Bundle, organisation_id: str) -> Descent | None:
    """The parent of the manifest, as the publisher may see it; None where it names none.

    Raises `NotFound` MODEL_NOT_FOUND for a parent that is not there or not to be seen, `Unprocessable` PARENT_CHANGED.
    """
    parent = bundle.manifest.descends_from
    if parent is None:
        return None
    asker = Principal(key_id="", organisation=organisation_id, role="vendor", scopes=frozenset({"publish"}))
    served = market.bundles.resolve(canonical(parent.name, field="parent.name"), str(parent.version), asker)
    if parent.digest and parent.digest != served.digest:
        raise Unprocessable(
            "PARENT_CHANGED",
            zh=f"父模型 {parent.name}@{parent.version} 的摘要与声明不符",
            en=f"the digest of {parent.name}@{parent.version} is not the one declared",
            remedy_zh="请从市场重新下载父模型后再派生",
            remedy_en="derive from the parent as the market serves it",
            field="parent.digest",
        )
    row = session.exec(select(ModelVersion).where(ModelVersion.id == served.version_id)).one()
    listing = session.get_one(Listing, row.listing_id)
    return Descent(
        listing_id=listing.id,
        version_id=row.id,
        relation=parent.relation,
        root=listing.root_base_listing_id or listing.id,
        name=listing.name,
        model_path=served.bundle / MODEL,
    )


def find_base(session: Session, market: Market, bundle: Bundle, organisation_id: str) -> Path | None:
    """The folder of the base that an adapter bundle runs on; None for every other bundle. Raises as `find_descent`."""
    if bundle.manifest.adapter_of is None:
        return None
    descent = find_descent(session, market, bundle, organisation_id)
    assert descent is not None, "an adapter descends from its base"
    return descent.model_path.parent
