"""Prices: append-only versions, each in force from an instant on. Micro-fen per unit; integers only."""

from __future__ import annotations

import re
from decimal import Decimal

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import Listing, PriceVersion
from marketplace.ids import new_id
from marketplace.organisations import audit
from model_store.errors import BadInput
from serving.metering import MICRO_PER_FEN, UNITS

MAX_MICRO_PER_UNIT = 10**13  # 100,000 yuan a unit: past it somebody mixed up yuan, fen and micro-fen
KINDS = ("use", "derivative")
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")


def price_at(session: Session, listing_id: str, kind: str, at_ms: int) -> PriceVersion | None:
    """The price in force at an instant; None where the listing has none of that kind yet."""
    query = select(PriceVersion).where(
        PriceVersion.listing_id == listing_id, PriceVersion.kind == kind, PriceVersion.effective_from_ms <= at_ms
    )
    newest_first = (col(PriceVersion.effective_from_ms).desc(), col(PriceVersion.id).desc())
    return session.exec(query.order_by(*newest_first).limit(1)).first()


def list_prices(session: Session, listing_id: str) -> list[PriceVersion]:
    """Every price version ever set, newest first."""
    query = select(PriceVersion).where(PriceVersion.listing_id == listing_id)
    return list(session.exec(query.order_by(col(PriceVersion.effective_from_ms).desc(), col(PriceVersion.id).desc())))


def add_price(
    session: Session,
    listing: Listing,
    *,
    kind: str,
    unit: str,
    micro_per_unit: int,
    actor: str,
    at_ms: int,
    effective_from_ms: int | None = None,
) -> PriceVersion:
    """Append a price version, in force at once or from a later instant; never one that changes the past."""
    if kind not in KINDS:
        raise _price_invalid("kind", "价格类型只能是 use 或 derivative", "a price is of the kind use or derivative")
    if unit not in UNITS:
        raise _price_invalid("unit", f"计量单位只能是 {', '.join(UNITS)}", f"a unit is one of {', '.join(UNITS)}")
    if not 0 <= micro_per_unit <= MAX_MICRO_PER_UNIT:
        raise _price_invalid(
            "micro_per_unit",
            f"单价须在 0 至 {MAX_MICRO_PER_UNIT} 微分之间 (1 分 = 1000000 微分)",
            f"a unit costs 0 to {MAX_MICRO_PER_UNIT} micro-fen (1 fen = 1,000,000 micro-fen)",
        )
    if effective_from_ms is not None and effective_from_ms < at_ms:
        raise _price_invalid("effective_from_ms", "生效时间不能早于现在", "a price cannot take effect in the past")
    price = PriceVersion(
        id=new_id("prc"),
        listing_id=listing.id,
        kind=kind,
        unit=unit,
        micro_per_unit=micro_per_unit,
        effective_from_ms=effective_from_ms or at_ms,
        created_by=actor,
        created_at_ms=at_ms,
    )
    session.add(price)
    audit.record(
        session,
        actor=actor,
        organisation_id=listing.organisation_id,
        action="price.set",
        subject=listing.name,
        price_version=price.id,
        kind=kind,
        unit=unit,
        micro_per_unit=micro_per_unit,
    )
    return price


def micro_of_fen(text: str, *, field: str = "fen_per_unit") -> int:
    """Micro-fen from fen as a person writes them: "0.37" → 370000. At most six decimals."""
    if not _DECIMAL.fullmatch(text.strip()):
        raise _price_invalid(
            field, "请填写最多六位小数的分值, 例如 0.37", "give fen with at most six decimals, for example 0.37"
        )
    return int(Decimal(text.strip()) * MICRO_PER_FEN)


def price_view(price: PriceVersion) -> dict[str, object]:
    """A price version as JSON."""
    return {
        "price_version": price.id,
        "kind": price.kind,
        "unit": price.unit,
        "micro_per_unit": price.micro_per_unit,
        "effective_from_ms": price.effective_from_ms,
        "created_at_ms": price.created_at_ms,
    }


def _price_invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "PRICE_INVALID",
        zh=zh,
        en=en,
        remedy_zh="请修改后重新提交",
        remedy_en="correct it and send it again",
        field=field,
    )
