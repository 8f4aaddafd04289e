"""Usage found again: filtered and paged, as CSV, and each record traced from the price to the posting."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.access import Actor
from marketplace.catalogue.prices import price_view
from marketplace.catalogue.tables import ModelVersion, PriceVersion
from marketplace.claims.tracing import claim_of, correction_of, filing_of, invoices_of
from marketplace.ledger.posting import entries_of
from marketplace.ledger.tables import LedgerTransfer
from marketplace.organisations.tables import Organisation
from marketplace.usage.tables import Usage
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import LeaseRow, Programme, Reservation, Subscription, Voucher
from model_store.errors import NotFound

MAX_CSV_ROWS = 1_000_000
COLUMNS = (
    "usage_id", "occurred_at_ms", "model", "adapter", "purpose", "status", "reason", "units", "price_version",
    "micro_per_unit", "amount_micro", "lease_kind", "lease_id", "subscription_id", "reservation_id", "voucher_id",
    "ratio_num", "ratio_den", "provider_id", "organisation_id", "key_id", "transfer_id", "request_digest",
    "response_digest", "node", "epoch", "seq", "ingested_at_ms",
)  # fmt: skip
_OF_THE_BUYER = ("key_id", "request_digest", "response_digest")


@dataclass(frozen=True, slots=True)
class Filters:
    """What to look for; empty means any. Instants in Unix milliseconds, `until_ms` not included."""

    from_ms: int | None = None
    until_ms: int | None = None
    model: str = ""  # vendor/name, or with @version
    key_id: str = ""
    status: str = ""
    lease_kind: str = ""
    subscription_id: str = ""
    reservation_id: str = ""
    organisation_id: str = ""
    purpose: str = ""


def _query(actor: Actor, filters: Filters) -> Any:
    """The statement for what this actor may see: an operator all, others what they use or provide."""
    query = select(Usage, Reservation, PriceVersion)
    query = query.join(Reservation, col(Reservation.id) == col(Usage.reservation_id), isouter=True)
    query = query.join(PriceVersion, col(PriceVersion.id) == col(Usage.price_version), isouter=True)
    if not actor.is_operator:
        own = actor.organisation_id
        query = query.where((col(Usage.organisation_id) == own) | (col(Usage.provider_id) == own))
    if filters.from_ms is not None:
        query = query.where(Usage.occurred_at_ms >= filters.from_ms)
    if filters.until_ms is not None:
        query = query.where(Usage.occurred_at_ms < filters.until_ms)
    if filters.model:
        exact = col(Usage.model) == filters.model
        prefix = col(Usage.model).startswith(f"{filters.model}@", autoescape=True)
        query = query.where(exact | prefix)
    for name in ("key_id", "status", "lease_kind", "subscription_id", "reservation_id", "organisation_id", "purpose"):
        if value := getattr(filters, name):
            query = query.where(col(getattr(Usage, name)) == value)
    return query


def list_usage(
    session: Session, actor: Actor, filters: Filters, *, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    """Newest first, and how many there are in all."""
    query = _query(actor, filters)
    total = session.exec(query.with_only_columns(func.count(), maintain_column_froms=True)).one()
    total = total if isinstance(total, int) else total[0]
    newest = query.order_by(col(Usage.occurred_at_ms).desc(), col(Usage.usage_id).desc())
    found = session.exec(newest.limit(limit).offset(offset))
    return [usage_view(row, reservation, price, actor) for row, reservation, price in found], total


def usage_view(row: Usage, reservation: Reservation | None, price: PriceVersion | None, actor: Actor) -> dict[str, Any]:
    """One record. A provider sees what was called and what it earns, not whose key it was nor digests of content."""
    view: dict[str, Any] = {name: getattr(row, name) for name in COLUMNS if hasattr(row, name)}
    view["micro_per_unit"] = price.micro_per_unit if price else 0
    view["voucher_id"] = reservation.voucher_id if reservation else ""
    view["ratio_num"] = reservation.ratio_num if reservation else 0
    view["ratio_den"] = reservation.ratio_den if reservation else 1
    if not actor.is_operator and actor.organisation_id != row.organisation_id:
        for name in _OF_THE_BUYER:
            view[name] = ""
    return {name: view[name] for name in COLUMNS}


def usage_csv(session: Session, actor: Actor, filters: Filters) -> Iterator[str]:
    """The same as CSV, oldest first, one line at a time; UTF-8 with a mark so that spreadsheets read it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    yield "\ufeff" + buffer.getvalue()
    oldest = _query(actor, filters).order_by(col(Usage.occurred_at_ms), col(Usage.usage_id)).limit(MAX_CSV_ROWS)
    for row, reservation, price in session.exec(oldest.execution_options(yield_per=1_000)):
        buffer.seek(0)
        buffer.truncate()
        view = usage_view(row, reservation, price, actor)
        units = " ".join(f"{unit}={count}" for unit, count in sorted(view["units"].items()))
        writer.writerow([units if name == "units" else view[name] for name in COLUMNS])
        yield buffer.getvalue()


def trace(session: Session, actor: Actor, usage_id: str) -> dict[str, Any]:
    """From a usage id to its price, filing on that day, voucher line, transfer, invoices, claim batch and payment.

    `NotFound` USAGE_NOT_FOUND, also for what the actor may not see; a record just written appears within seconds.
    """
    found = session.exec(_query(actor, Filters()).where(Usage.usage_id == usage_id)).first()
    if found is None:
        raise NotFound(
            "USAGE_NOT_FOUND",
            zh=f"没有用量记录“{usage_id[:60]}”, 刚完成的调用需数秒入账",
            en=f"there is no usage {usage_id[:60]!r}; a call that has just ended takes seconds to arrive",
            remedy_zh="请核对编号, 或稍后再查",
            remedy_en="check the id, or look again shortly",
        )
    row, reservation, price = found
    answer: dict[str, Any] = {"usage": usage_view(row, reservation, price, actor)}
    answer["adapter"] = _adapter(session, row)
    answer["price"] = price_view(price) if price else None
    answer["filing"] = filing_of(session, row)
    lease = session.get(LeaseRow, row.lease_id)
    answer["lease"] = _pick(lease, "id", "kind", "node", "epoch", "state", "opened_at_ms", "expires_at_ms")
    subscription = session.get(Subscription, row.subscription_id) if row.subscription_id else None
    answer["contract"] = _pick(subscription, "id", "contract_fen", "on_voucher_end", "state")
    answer["voucher_line"] = _voucher_line(session, reservation) if reservation else None
    provider = session.get(Organisation, row.provider_id) if row.provider_id else None
    answer["provider"] = _pick(provider, "id", "name_zh", "name_en")
    answer["transfer"] = _transfer(session, row.transfer_id, actor) if row.transfer_id else None
    answer["invoices"] = invoices_of(session, row.subscription_id) if row.subscription_id else []
    answer["claim"] = claim_of(session, row.transfer_id, to_operator=actor.is_operator)
    answer["correction"] = correction_of(session, row.usage_id)
    return answer


def _adapter(session: Session, row: Usage) -> dict[str, Any] | None:
    """The adapter that ran and the base it ran on; None for a model with a graph of its own."""
    number = row.adapter.rpartition("@")[2]
    if not number.isdecimal():
        return None
    wanted = select(ModelVersion.manifest)
    wanted = wanted.where(ModelVersion.listing_id == row.listing_id, ModelVersion.number == int(number))
    of = (session.exec(wanted).first() or {}).get("adapter_of") or {}
    base = f"{of['name']}@{of['version']}" if of else ""
    return {"model": row.adapter, "base": base, "base_digest": of.get("digest", "")}


def _voucher_line(session: Session, reservation: Reservation) -> dict[str, Any]:
    voucher = session.get_one(Voucher, reservation.voucher_id)
    programme = session.get_one(Programme, voucher.programme_id)
    return {
        "voucher_id": voucher.id,
        "use_by": voucher.use_by,
        "programme": programme.code,
        "title_zh": programme.title_zh,
        "title_en": programme.title_en,
        "settlement_mode": rules_of(programme).settlement_mode,
        "reservation_id": reservation.id,
        "ratio_num": reservation.ratio_num,
        "ratio_den": reservation.ratio_den,
        "posted_gross_fen": reservation.posted_gross_fen,
        "posted_subsidy_fen": reservation.posted_subsidy_fen,
    }


def _transfer(session: Session, transfer_id: int, actor: Actor) -> dict[str, Any]:
    transfer = session.get_one(LedgerTransfer, transfer_id)
    shown = _pick(transfer, "id", "kind", "event_key", "occurred_at_ms", "posted_at_ms") or {}
    query = select(func.count()).select_from(Usage).where(Usage.transfer_id == transfer_id)
    entries = [{"account": each.account, "amount_fen": each.amount_fen} for each in entries_of(session, transfer)]
    return shown | {"usage_records": session.exec(query).one(), "entries": entries}


def _pick(row: Any, *names: str) -> dict[str, Any] | None:
    return None if row is None else {name: getattr(row, name) for name in names}
