"""Monthly statements by Asia/Shanghai calendar month: exact usage in micro-fen, and what was posted in fen.

One line per contract, way of paying, model and price version (usage), and one per contract or reservation (postings).
The postings are those of the month's P5 transfers, by the instant of the newest usage in each; parts of a fen wait for
the next posting, so that micro-fen and fen agree over the life of a reservation, not within each month.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa
from openpyxl import Workbook
from sqlmodel import Session, col, select

from marketplace.clock import start_of_day_ms
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.organisations.tables import Organisation
from marketplace.usage.tables import Usage
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Programme, Reservation, Subscription, Voucher
from model_store.errors import BadInput

USAGE_COLUMNS = (
    "subscription_id", "reservation_id", "lease_kind", "model", "adapter", "price_version", "calls", "rows",
    "amount_micro",
)  # fmt: skip
POSTED_COLUMNS = (
    "subscription_id", "reservation_id", "voucher_id", "programme", "settlement_mode", "gross_fen", "voucher_fen",
    "self_paid_fen", "fee_fen", "vat_fen", "provider_fen",
)  # fmt: skip
_FORMULAS = ("=", "+", "-", "@")
FORMATS = ("json", "csv", "xlsx")
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in Asia/Shanghai; `until_ms` is the first millisecond after it."""

    name: str
    from_ms: int
    until_ms: int


def read_month(text: str) -> Month:
    """`BadInput` MONTH_INVALID unless YYYY-MM."""
    found = _MONTH.fullmatch(text)
    if found is None:
        raise BadInput(
            "MONTH_INVALID",
            zh="月份格式为 YYYY-MM",
            en="a month is written YYYY-MM",
            remedy_zh="例如 2026-11",
            remedy_en="for example 2026-11",
            field="month",
        )
    year, month = int(found[1]), int(found[2])
    after = date(year + month // 12, month % 12 + 1, 1)
    return Month(text, start_of_day_ms(date(year, month, 1)), start_of_day_ms(after))


def statement(session: Session, organisation_id: str, month: Month, *, as_provider: bool = False) -> dict[str, Any]:
    """What an organisation used (or provided) in a month: {organisation, month, role, usage, posted, totals}."""
    organisation = session.get_one(Organisation, organisation_id)
    usage = _usage_lines(session, organisation_id, month, as_provider)
    posted = _posted_lines(session, organisation_id, month, as_provider)
    totals = {name: sum(line[name] for line in posted) for name in POSTED_COLUMNS if name.endswith("_fen")}
    return {
        "organisation_id": organisation_id,
        "organisation_zh": organisation.name_zh,
        "uscc": organisation.uscc or "",
        "role": "provider" if as_provider else "buyer",
        "month": month.name,
        "from_ms": month.from_ms,
        "until_ms": month.until_ms,
        "usage": usage,
        "posted": posted,
        "totals": {
            "calls": sum(line["calls"] for line in usage),
            "amount_micro": sum(line["amount_micro"] for line in usage),
            **totals,
        },
    }


def _usage_lines(session: Session, organisation_id: str, month: Month, as_provider: bool) -> list[dict[str, Any]]:
    """Sums per contract, way of paying, model and price. Quarantined usage is not charged and not shown."""
    table: sa.Table = Usage.__table__  # type: ignore[attr-defined]
    c = table.c
    keys = (c.subscription_id, c.reservation_id, c.lease_kind, c.model, c.adapter, c.price_version)
    rows = sa.cast(c.units["rows"].as_string(), sa.BigInteger)
    query = (
        sa.select(*keys, sa.func.count(), sa.func.coalesce(sa.func.sum(rows), 0), sa.func.sum(c.amount_micro))
        .where(c.provider_id == organisation_id if as_provider else c.organisation_id == organisation_id)
        .where(c.occurred_at_ms >= month.from_ms, c.occurred_at_ms < month.until_ms, c.status != "quarantined")
        .group_by(*keys)
        .order_by(*keys)
    )
    return [
        dict(zip(USAGE_COLUMNS, (*row[:6], int(row[6]), int(row[7]), int(row[8])), strict=True))
        for row in session.connection().execute(query)
    ]


def _posted_lines(session: Session, organisation_id: str, month: Month, as_provider: bool) -> list[dict[str, Any]]:
    query = select(Subscription)
    owner = Subscription.provider_id if as_provider else Subscription.organisation_id
    found = []
    for subscription in session.exec(query.where(owner == organisation_id).order_by(Subscription.id)):
        own = _posted(session, subscription.id, month)
        if own["gross_fen"]:
            found.append(_line(subscription.id, "", "", "", "", own))
        reservations = (
            select(Reservation, Voucher, Programme)
            .join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
            .join(Programme, col(Programme.id) == col(Voucher.programme_id))
            .where(Reservation.subscription_id == subscription.id)
            .order_by(col(Reservation.id))
        )
        for reservation, voucher, programme in session.exec(reservations):
            part = _posted(session, reservation.id, month)
            if part["gross_fen"]:
                mode = rules_of(programme).settlement_mode or ""
                found.append(_line(subscription.id, reservation.id, voucher.id, programme.code, mode, part))
    return found


def _posted(session: Session, event_of: str, month: Month) -> dict[str, int]:
    """Sums of the month's P5 transfers of one reservation or self-paid contract, found by their event keys."""
    query = (
        select(LedgerEntry.account, LedgerEntry.amount_fen)
        .join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
        .where(_begins_with(session, f"P5:{event_of}:"))
        .where(LedgerTransfer.occurred_at_ms >= month.from_ms, LedgerTransfer.occurred_at_ms < month.until_ms)
    )
    sums = dict.fromkeys(("gross_fen", "voucher_fen", "fee_fen", "vat_fen", "provider_fen"), 0)
    for account, fen in session.exec(query):
        if account.startswith("M.recv."):
            sums["gross_fen"] += fen
        elif account.startswith("Q.used["):
            sums["voucher_fen"] += fen
        elif account.startswith("M.pay.provider["):
            sums["provider_fen"] -= fen
        elif account == accounts.FEE:
            sums["fee_fen"] -= fen
        elif account == accounts.VAT:
            sums["vat_fen"] -= fen
    return sums


def _begins_with(session: Session, prefix: str) -> Any:
    """Event keys by their beginning; as a range on SQLite, whose index serves no LIKE. `prefix` ends with a colon."""
    key = col(LedgerTransfer.event_key)
    if session.get_bind().dialect.name == "sqlite":
        return sa.and_(key >= prefix, key < f"{prefix[:-1]};")  # the semicolon follows the colon
    return key.startswith(prefix, autoescape=True)


def _line(
    subscription: str, reservation: str, voucher: str, programme: str, mode: str, sums: dict[str, int]
) -> dict[str, Any]:
    return {
        "subscription_id": subscription, "reservation_id": reservation, "voucher_id": voucher, "programme": programme,
        "settlement_mode": mode, "gross_fen": sums["gross_fen"], "voucher_fen": sums["voucher_fen"],
        "self_paid_fen": sums["gross_fen"] - sums["voucher_fen"], "fee_fen": sums["fee_fen"],
        "vat_fen": sums["vat_fen"], "provider_fen": sums["provider_fen"],
    }  # fmt: skip


def _as_text(value: Any) -> Any:
    """A name that an organisation gave itself is never a formula in the spreadsheet of whoever opens its statement."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def as_csv(found: dict[str, Any]) -> bytes:
    """Both tables below each other; UTF-8 with a mark so that spreadsheets read it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for name in ("organisation_id", "organisation_zh", "uscc", "role", "month"):
        writer.writerow([name, _as_text(found[name])])
    for title, columns in (("usage", USAGE_COLUMNS), ("posted", POSTED_COLUMNS)):
        writer.writerow([])
        writer.writerow([title])
        writer.writerow(columns)
        writer.writerows([line[name] for name in columns] for line in found[title])
    writer.writerow([])
    writer.writerow(["totals"])
    writer.writerows(found["totals"].items())
    return ("\ufeff" + buffer.getvalue()).encode()


def as_xlsx(found: dict[str, Any]) -> bytes:
    """A workbook of three sheets: totals, postings, usage. Amounts stay integers."""
    book = Workbook(write_only=True)
    sheet = book.create_sheet("合计 totals")
    for name in ("organisation_id", "organisation_zh", "uscc", "role", "month"):
        sheet.append([name, _as_text(found[name])])
    for pair in found["totals"].items():
        sheet.append(list(pair))
    for title, key, columns in (
        ("入账 posted", "posted", POSTED_COLUMNS),
        ("用量 usage", "usage", USAGE_COLUMNS),
    ):
        sheet = book.create_sheet(title)
        sheet.append(list(columns))
        for line in found[key]:
            sheet.append([line[name] for name in columns])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def as_json(found: dict[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, indent=1).encode()
