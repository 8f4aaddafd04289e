"""What the search index holds of each listing, and the card that a result shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from marketplace.catalogue.labels import MODALITIES, TASKS, TIERS
from marketplace.catalogue.search import Document
from marketplace.catalogue.tables import Filing, Listing, ModelVersion, PriceVersion
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.organisations.tables import Organisation

_MICRO_PER_FEN = 1_000_000
_OF_MANIFEST = ("method", "variation", "adaptable", "metrics", "cost", "features")


class Numbered(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def number(self) -> int: ...


V = TypeVar("V", bound=Numbered)


class Shown(NamedTuple):
    """What is indexed and shown of a version; of its manifest the parts that are, since thousands are read at once."""

    id: str
    listing_id: str
    number: int
    state: str
    size_bytes: int
    scorecard: dict[str, Any]
    manifest: dict[str, Any]


def load_documents(engine: Engine, listing_id: str | None = None) -> list[Document]:
    """The documents of one listing, or of all that are not withdrawn."""
    with reading(engine) as session:
        query = select(Listing).where(Listing.status != "withdrawn")
        if listing_id is not None:
            query = query.where(Listing.id == listing_id)
        listings = list(session.exec(query))
        chosen = None if listing_id is None else listing_id
        organisations = {row.id: row for row in session.exec(select(Organisation))}
        filings = {row.id: row for row in session.exec(select(Filing))}
        versions = _latest_versions(session, chosen)
        prices = _current_prices(session, chosen)
    return [
        _document(
            listing,
            organisations[listing.organisation_id],
            versions.get(listing.id, []),
            prices.get(listing.id, {}),
            filings.get(listing.filing_id or ""),
        )
        for listing in listings
    ]


def shown_version(versions: Iterable[V]) -> V | None:
    """The newest listed version, else the newest that is neither retired nor withdrawn."""
    ordered = sorted(versions, key=lambda version: (version.state == "listed", version.number))
    return ordered[-1] if ordered else None


def _latest_versions(session: Session, listing_id: str | None) -> dict[str, list[Shown]]:
    columns = [getattr(ModelVersion, name) for name in Shown._fields[:-1]]
    query = select_columns(*columns, *(col(ModelVersion.manifest)[name] for name in _OF_MANIFEST))
    query = query.where(col(ModelVersion.state).not_in(("retired", "withdrawn")))
    if listing_id is not None:
        query = query.where(col(ModelVersion.listing_id) == listing_id)
    found: dict[str, list[Shown]] = {}
    for row in session.connection().execute(query):
        parts = zip(_OF_MANIFEST, row[len(columns) :], strict=True)
        manifest = {name: value for name, value in parts if value is not None}
        version = Shown._make((*row[: len(columns)], manifest))
        found.setdefault(version.listing_id, []).append(version)
    return found


def _current_prices(session: Session, listing_id: str | None) -> dict[str, dict[str, PriceVersion]]:
    query = select(PriceVersion).where(PriceVersion.effective_from_ms <= now_ms())
    if listing_id is not None:
        query = query.where(PriceVersion.listing_id == listing_id)
    found: dict[str, dict[str, PriceVersion]] = {}
    for price in session.exec(query.order_by(col(PriceVersion.effective_from_ms), col(PriceVersion.id))):
        found.setdefault(price.listing_id, {})[price.kind] = price
    return found


def _document(
    listing: Listing,
    organisation: Organisation,
    versions: list[Shown],
    prices: dict[str, PriceVersion],
    filing: Filing | None,
) -> Document:
    version = shown_version(versions)
    price = prices.get("use")
    card = _card(listing, organisation, version, prices, filing)
    fields = [
        (listing.name, 5.0),
        (listing.title_zh, 6.0),
        (listing.title_en, 6.0),
        *((word, 5.0) for word in listing.keywords),
        *((scenario, 3.0) for scenario in listing.scenarios),
        (" ".join(TASKS.get(listing.task, (listing.task, listing.task))), 3.0),
        (listing.task, 3.0),
        (" ".join(MODALITIES.get(listing.modality, (listing.modality,))), 2.0),
        (" ".join(listing.links), 2.0),
        (" ".join(listing.chains), 2.0),
        (listing.summary_zh, 2.0),
        (listing.summary_en, 2.0),
        (organisation.name_zh, 2.0),
        (organisation.name_en, 2.0),
        (str(card["method"]), 2.0),
        (" ".join(TIERS.get(listing.tier, (listing.tier,))), 1.0),
        (" ".join(_measured(version)), 1.0),
    ]
    facets = [
        ("tier", listing.tier),
        ("task", listing.task),
        ("modality", listing.modality),
        ("vendor", listing.name.partition("/")[0]),
        ("filing", "filed" if filing and not filing.is_demo else "demo" if filing else "none"),
        ("price", price_band(price.micro_per_unit if price else None)),
        *(("licence", listing.licence) for _ in [0] if listing.licence),
        *(("family", listing.family) for _ in [0] if listing.family),
        *(("link", link) for link in listing.links),
        *(("chain", chain) for chain in listing.chains),
        *(("scenario", scenario) for scenario in listing.scenarios),
    ]
    return Document(
        listing_id=listing.id,
        owner=listing.organisation_id,
        listed=listing.status == "listed" and listing.visibility == "public" and organisation.status == "approved",
        fields=fields,
        facets=facets,
        card=card,
        price_micro=price.micro_per_unit if price else None,
        created_at_ms=listing.created_at_ms,
    )


def _measured(version: Shown | None) -> list[str]:
    """What the model reads, in words: a factory searches by what it measures ("wear", 扭矩) as well as by the task."""
    features = version.manifest.get("features") or [] if version else []
    return [str(feature.get(title) or "") for feature in features for title in ("title_zh", "title_en")]


def _card(
    listing: Listing,
    organisation: Organisation,
    version: Shown | None,
    prices: dict[str, PriceVersion],
    filing: Filing | None,
) -> dict[str, Any]:
    manifest = version.manifest if version else {}
    price, derivative = prices.get("use"), prices.get("derivative")
    return {
        "listing_id": listing.id,
        "name": listing.name,
        "title_zh": listing.title_zh,
        "title_en": listing.title_en,
        "summary_zh": listing.summary_zh,
        "summary_en": listing.summary_en,
        "tier": listing.tier,
        "task": listing.task,
        "modality": listing.modality,
        "family": listing.family,
        "licence": listing.licence,
        "chains": listing.chains,
        "links": listing.links,
        "scenarios": listing.scenarios,
        "keywords": listing.keywords,
        "vendor": listing.name.partition("/")[0],
        "vendor_name_zh": organisation.name_zh,
        "vendor_name_en": organisation.name_en,
        "visibility": listing.visibility,
        "status": listing.status,
        "is_starter": listing.is_starter,
        "is_demo": organisation.is_demo,
        "version": version.number if version else None,
        "version_id": version.id if version else None,
        "version_state": version.state if version else None,
        "method": manifest.get("method", ""),
        "variation": manifest.get("variation", "fp32"),
        "adaptable": manifest.get("adaptable", "none"),
        "metrics": manifest.get("metrics", []),
        "cost": manifest.get("cost"),
        "size_bytes": version.size_bytes if version else 0,
        "scorecard": version.scorecard if version else {},
        "price": _price(price),
        "derivative_price": _price(derivative),
        "filing_no": filing.number if filing else None,
        "filing_is_demo": filing.is_demo if filing else False,
        "created_at_ms": listing.created_at_ms,
        "updated_at_ms": listing.updated_at_ms,
    }


def _price(price: PriceVersion | None) -> dict[str, Any] | None:
    if price is None:
        return None
    return {"price_version": price.id, "unit": price.unit, "micro_per_unit": price.micro_per_unit}


def price_band(micro_per_unit: int | None) -> str:
    """The facet value of a price: none | free | <=0.1fen | <=1fen | <=10fen | >10fen."""
    if micro_per_unit is None:
        return "none"
    if micro_per_unit == 0:
        return "free"
    for limit_micro, band in ((_MICRO_PER_FEN // 10, "<=0.1fen"), (_MICRO_PER_FEN, "<=1fen")):
        if micro_per_unit <= limit_micro:
            return band
    return "<=10fen" if micro_per_unit <= 10 * _MICRO_PER_FEN else ">10fen"
