"""Subscriptions: an enterprise's contract on a listing (and its private derivatives), and what a voucher sets aside."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.catalogue.tables import Listing
from marketplace.ids import new_id
from marketplace.ledger import accounts
from marketplace.ledger.posting import balances
from marketplace.organisations import audit
from marketplace.vouchers import sale as sales
from marketplace.vouchers.eligibility import Reason
from marketplace.vouchers.lease_rows import own_cost_micro
from marketplace.vouchers.refusals import words
from marketplace.vouchers.reservations import Buyer, declared_fen, held_vouchers, reserve_more
from marketplace.vouchers.tables import Reservation, Subscription
from model_store.errors import BadInput, Conflict, NotFound

MAX_CONTRACT_FEN = 10**12
ENDS = ("refuse", "self_pay")
TERMS = ("contract_fen", "on_voucher_end", "monthly_cap_fen")


def subscribe(
    session: Session,
    organisation_id: str,
    listing: Listing,
    *,
    contract_fen: int,
    on_voucher_end: str,
    monthly_cap_fen: int | None,
    actor: str,
    at_ms: int,
) -> tuple[Subscription, list[Reason]]:
    """Take a listing; for a private derivative, the one it is sold under. Reserves at once what vouchers allow (P3).

    Answers the contract and why the vouchers that set nothing aside did not. `BadInput` by field; `Conflict` OWN_MODEL,
    NOT_LISTED, SUBSCRIPTION_EXISTS.
    """
    target = sales.sold_under(session, listing)
    _check_listing(target, organisation_id)
    check_terms(contract_fen, on_voucher_end, monthly_cap_fen)
    if active_subscription(session, organisation_id, target.id) is not None:
        raise Conflict(
            "SUBSCRIPTION_EXISTS",
            zh=f"已订阅“{target.name}”",
            en=f"{target.name} is subscribed already",
            remedy_zh="请修改或先结束现有订阅",
            remedy_en="change the standing subscription, or end it first",
        )
    row = Subscription(
        id=new_id("sub"),
        organisation_id=organisation_id,
        listing_id=target.id,
        provider_id=target.organisation_id,
        contract_fen=contract_fen,
        on_voucher_end=on_voucher_end,
        monthly_cap_fen=monthly_cap_fen,
        created_at_ms=at_ms,
    )
    session.add(row)
    session.flush()
    _record(session, row, "create", actor, target.name, contract_fen=row.contract_fen)
    return row, reserve(session, row, target, at_ms)


def reserve(session: Session, row: Subscription, listing: Listing, at_ms: int) -> list[Reason]:
    """Set aside for a contract what the organisation's vouchers allow; answers the reasons of those that do not."""
    vouchers = held_vouchers(session, row.organisation_id)
    if not vouchers or not row.contract_fen:
        return []
    sale = sales.Sale(listing, listing, row.provider_id, None)
    relation = sales.relation_between(session, row.organisation_id, row.provider_id)
    buyer = Buyer(row, sales.offer_of(session, sale), relation, at_ms, declared_fen(session, row.id))
    _, reasons = reserve_more(session, buyer, vouchers)
    return reasons


def change(session: Session, row: Subscription, changes: dict[str, Any], *, actor: str) -> Subscription:
    """Change `contract_fen`, `on_voucher_end` or `monthly_cap_fen`; a lease that a node holds keeps its terms."""
    if row.state != "active":
        raise Conflict(
            "SUBSCRIPTION_ENDED",
            zh="订阅已结束",
            en="the subscription has ended",
            remedy_zh="请重新订阅",
            remedy_en="subscribe again",
        )
    terms = {
        name: changes.get(name, getattr(row, name)) for name in ("contract_fen", "on_voucher_end", "monthly_cap_fen")
    }
    check_terms(**terms)
    for name, value in terms.items():
        setattr(row, name, value)
    _record(session, row, "change", actor, **changes)
    return row


def check_terms(contract_fen: int, on_voucher_end: str, monthly_cap_fen: int | None) -> None:
    """`BadInput` TERMS_INVALID by field."""
    if not 0 <= contract_fen <= MAX_CONTRACT_FEN:
        raise _invalid("contract_fen", "合同金额须为非负整数(分)", "a contract is zero or more fen")
    if on_voucher_end not in ENDS:
        raise _invalid("on_voucher_end", "只能是 refuse 或 self_pay", "it is refuse or self_pay")
    if monthly_cap_fen is not None and not 0 <= monthly_cap_fen <= MAX_CONTRACT_FEN:
        raise _invalid("monthly_cap_fen", "月度上限须为非负整数(分)", "a monthly cap is zero or more fen")


def active_subscription(session: Session, organisation_id: str, listing_id: str) -> Subscription | None:
    query = select(Subscription).where(
        Subscription.organisation_id == organisation_id,
        Subscription.listing_id == listing_id,
        Subscription.state == "active",
    )
    return session.exec(query).first()


def get_subscription(session: Session, subscription_id: str, organisation_id: str | None) -> Subscription:
    """Locked; within one organisation, or any (None). `NotFound` SUBSCRIPTION_NOT_FOUND."""
    row = session.exec(select(Subscription).where(Subscription.id == subscription_id).with_for_update()).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise NotFound(
            "SUBSCRIPTION_NOT_FOUND",
            zh=f"没有订阅“{subscription_id[:60]}”",
            en=f"there is no subscription {subscription_id[:60]!r}",
            remedy_zh="请查看订阅列表",
            remedy_en="see the list of subscriptions",
        )
    return row


def list_subscriptions(
    session: Session, *, organisation_id: str | None = None, provider_id: str | None = None, limit: int = 100,
    offset: int = 0,
) -> tuple[list[Subscription], int]:  # fmt: skip
    """Newest first: of a subscriber, of a provider, or all."""
    query = select(Subscription)
    if organisation_id is not None:
        query = query.where(Subscription.organisation_id == organisation_id)
    if provider_id is not None:
        query = query.where(Subscription.provider_id == provider_id)
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    newest = query.order_by(col(Subscription.created_at_ms).desc(), col(Subscription.id).desc())
    return list(session.exec(newest.limit(limit).offset(offset))), total


def subscription_view(session: Session, row: Subscription, at_ms: int, reasons: list[Reason]) -> dict[str, Any]:
    """A contract as JSON, with its reservations and this month's own cost."""
    query = select(Reservation).where(Reservation.subscription_id == row.id).order_by(col(Reservation.id))
    reservations = list(session.exec(query))
    idle = balances(session, [accounts.reserved(each.id) for each in reservations])
    fields = (
        "id", "organisation_id", "listing_id", "provider_id", *TERMS, "state", "created_at_ms", "ended_at_ms",
    )  # fmt: skip
    view: dict[str, Any] = {name: getattr(row, name) for name in fields}
    view["listing"] = session.get_one(Listing, row.listing_id).name
    view["own_cost_month_micro"] = own_cost_micro(session, row.id, at_ms)
    view["reservations"] = [
        {
            "id": each.id,
            "voucher_id": each.voucher_id,
            "state": each.state,
            "amount_fen": each.amount_fen,
            "idle_fen": idle[accounts.reserved(each.id)],
            "used_fen": each.posted_subsidy_fen,
            "gross_fen": each.posted_gross_fen,
            "released_fen": each.released_fen,
            "ratio_num": each.ratio_num,
            "ratio_den": each.ratio_den,
        }
        for each in reservations
    ]
    view["not_reserved"] = [
        dict(zip(("code", "zh", "en"), (str(each), *words(str(each))), strict=True)) for each in reasons
    ]
    return view


def _check_listing(target: Listing, organisation_id: str) -> None:
    if target.organisation_id == organisation_id:
        raise Conflict(
            "OWN_MODEL",
            zh="本单位的模型无需订阅, 可直接调用",
            en="your own model needs no subscription; call it",
            remedy_zh="请直接调用",
            remedy_en="call it at once",
        )
    if target.status != "listed" or target.visibility != "public":
        raise Conflict(
            "NOT_LISTED",
            zh=f"“{target.name}”未上架, 不能订阅",
            en=f"{target.name} is not listed and cannot be subscribed",
            remedy_zh="请选择已上架的模型",
            remedy_en="choose a listed model",
        )


def _record(session: Session, row: Subscription, action: str, actor: str, listing: str = "", **details: Any) -> None:
    session.add(row)
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action=f"subscription.{action}",
        subject=row.id,
        listing=listing or row.listing_id,
        **details,
    )


def _invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "TERMS_INVALID", zh=zh, en=en, remedy_zh="请修改后重试", remedy_en="correct it and try again", field=field
    )
