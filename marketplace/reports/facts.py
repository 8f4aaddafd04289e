"""What was so at an instant, from rows that are only ever appended: transfers by when they were posted, audit events
and rows by when they were made, usage by when it was ingested. Columns that change later are not read here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from marketplace.claims.tables import ClaimLine, Clawback, Correction
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.organisations.tables import AuditEvent, Organisation
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import LeaseRow, Programme, Reservation, Subscription, Voucher
from model_store.blobs import Blobs

CHUNK = 2_000  # rows that a streamed query holds at a time


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge (P5) or correction (P13; negative amounts) with whom and what it is about; "" where self-paid."""

    transfer_id: int
    kind: str
    event_key: str
    occurred_at_ms: int
    posted_at_ms: int
    gross_fen: int
    subsidy_fen: int
    provider: str
    enterprise: str
    subscription: str
    reservation: str
    voucher: str
    programme: str


@dataclass(slots=True)
class Claimed:
    """Where what was claimed under a voucher is, in fen."""

    batched: int = 0
    paid: int = 0
    clawed: int = 0
    rejected: int = 0


@dataclass
class Facts:
    """`programme_id` "": all programmes and what no voucher pays for. Usage and charges are of [from_ms, as_of_ms]."""

    session: Session
    blobs: Blobs
    as_of_ms: int
    programme_id: str = ""
    from_ms: int = 0
    _events: dict[str, list[AuditEvent]] = field(default_factory=dict)

    def by_id(self, table: Any) -> dict[str, Any]:
        """Rows made by then, by id and in its order. Only for tables that grow with contracts, not with calls."""
        query = select(table).where(col(table.created_at_ms) <= self.as_of_ms).order_by(col(table.id))
        return {row.id: row for row in self.session.exec(query)}

    @cached_property
    def organisations(self) -> dict[str, Organisation]:
        return self.by_id(Organisation)

    @cached_property
    def programmes(self) -> dict[str, Programme]:
        """Of the programme that was asked for, or all."""
        found = self.by_id(Programme)
        return {key: row for key, row in found.items() if self.programme_id in ("", key)}

    @cached_property
    def vouchers(self) -> dict[str, Voucher]:
        return {key: row for key, row in self.by_id(Voucher).items() if row.programme_id in self.programmes}

    @cached_property
    def reservations(self) -> dict[str, Reservation]:
        """Of these vouchers."""
        return {key: row for key, row in self.by_id(Reservation).items() if row.voucher_id in self.vouchers}

    @cached_property
    def subscriptions(self) -> dict[str, Subscription]:
        return self.by_id(Subscription)

    def name(self, organisation_id: str) -> str:
        row = self.organisations.get(organisation_id)
        return row.name_zh if row else ""

    def uscc(self, organisation_id: str) -> str:
        row = self.organisations.get(organisation_id)
        return (row.uscc or "") if row else ""

    def events(self, prefix: str) -> list[AuditEvent]:
        """Audit events of an action (`voucher.`) by then, oldest first."""
        if prefix not in self._events:
            query = select(AuditEvent).where(
                col(AuditEvent.action).startswith(prefix, autoescape=True), col(AuditEvent.at_ms) <= self.as_of_ms
            )
            self._events[prefix] = list(self.session.exec(query.order_by(col(AuditEvent.at_ms), col(AuditEvent.id))))
        return self._events[prefix]

    def events_of(self, prefix: str) -> dict[str, list[AuditEvent]]:
        """The same by subject."""
        found: dict[str, list[AuditEvent]] = defaultdict(list)
        for event in self.events(prefix):
            found[event.subject].append(event)
        return found

    @cached_property
    def flows(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(kind of posting, account) → fen into it and out of it by then."""
        amount = col(LedgerEntry.amount_fen)
        query = (
            sa.select(col(LedgerTransfer.kind), col(LedgerEntry.account), *_turnover(amount))
            .join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
            .where(col(LedgerTransfer.posted_at_ms) <= self.as_of_ms)
            .group_by(col(LedgerTransfer.kind), col(LedgerEntry.account))
        )
        return {(k, a): (int(into), int(out)) for k, a, into, out in self.session.connection().execute(query)}

    @cached_property
    def turnover_before(self) -> dict[str, tuple[int, int]]:
        """Account → fen into it and out of it before the period; {} where it has no first day."""
        if not self.from_ms:
            return {}
        query = (
            sa.select(col(LedgerEntry.account), *_turnover(col(LedgerEntry.amount_fen)))
            .join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
            .where(col(LedgerTransfer.posted_at_ms) < self.from_ms)
            .group_by(col(LedgerEntry.account))
        )
        return {account: (int(into), int(out)) for account, into, out in self.session.connection().execute(query)}

    @cached_property
    def balances(self) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for (_, account), (into, out) in self.flows.items():
            found[account] += into - out
        return found

    @cached_property
    def leased(self) -> dict[str, int]:
        """Reservation → fen that nodes hold of it."""
        found: dict[str, int] = defaultdict(int)
        held = {code[8:-1]: fen for code, fen in self.balances.items() if code.startswith("Q.lease[") and fen}
        ids = sorted(held)
        for start in range(0, len(ids), 500):
            query = sa.select(col(LeaseRow.id), col(LeaseRow.reservation_id)).where(
                col(LeaseRow.id).in_(ids[start : start + 500])
            )
            for lease, reservation in self.session.connection().execute(query):
                found[reservation] += held[lease]
        return found

    def transfers(self, *kinds: str) -> Iterator[tuple[LedgerTransfer, list[LedgerEntry]]]:
        """Postings of these kinds by then, with their entries, in id order."""
        query = (
            select(LedgerTransfer, LedgerEntry)
            .join(LedgerEntry, col(LedgerEntry.transfer_id) == col(LedgerTransfer.id))
            .where(col(LedgerTransfer.kind).in_(kinds), col(LedgerTransfer.posted_at_ms) <= self.as_of_ms)
            .order_by(col(LedgerTransfer.id), col(LedgerEntry.line))
            .execution_options(yield_per=CHUNK)
        )
        for _, group in groupby(self.session.exec(query), key=lambda pair: pair[0].id):
            pairs = list(group)
            yield pairs[0][0], [entry for _, entry in pairs]

    def charges(self) -> Iterator[Charge]:
        """Charges and corrections in id order; of one programme, only what its vouchers share."""
        for transfer, entries in self.transfers("P5", "P13"):
            if transfer.occurred_at_ms >= self.from_ms and (charge := self._charge(transfer, entries)):
                yield charge

    def _charge(self, transfer: LedgerTransfer, entries: list[LedgerEntry]) -> Charge | None:
        gross = subsidy = 0
        provider = enterprise = reservation = ""
        for entry in entries:
            kind, _, rest = entry.account.partition("[")
            if kind in ("M.pay.provider", "M.fee", "M.vat"):
                gross -= entry.amount_fen
            if kind == "M.pay.provider":
                provider = rest[:-1]
            elif kind == "M.recv.ent":
                enterprise = rest[:-1]
            elif kind == "Q.used":
                reservation, subsidy = rest[:-1], entry.amount_fen
        held = self.reservations.get(reservation)
        if self.programme_id and held is None:
            return None
        subscription = held.subscription_id if held else self._subscription_of(transfer)
        contract = self.subscriptions.get(subscription)
        voucher = self.vouchers[held.voucher_id] if held else None
        return Charge(
            transfer_id=transfer.id or 0,
            kind=transfer.kind,
            event_key=transfer.event_key,
            occurred_at_ms=transfer.occurred_at_ms,
            posted_at_ms=transfer.posted_at_ms,
            gross_fen=gross,
            subsidy_fen=subsidy,
            provider=provider or (contract.provider_id if contract else ""),
            enterprise=enterprise or (contract.organisation_id if contract else ""),
            subscription=subscription,
            reservation=reservation,
            voucher=voucher.id if voucher else "",
            programme=voucher.programme_id if voucher else "",
        )

    def _subscription_of(self, transfer: LedgerTransfer) -> str:
        """Of a self-paid charge: by its usage; of a correction: by the record that it takes back."""
        query = select(Usage.subscription_id).where(Usage.transfer_id == transfer.id)
        if transfer.kind == "P13":
            usage = select(Correction.usage_id).where(Correction.id == transfer.event_key.removeprefix("P13:"))
            query = select(Usage.subscription_id).where(col(Usage.usage_id).in_(usage))
        return self.session.exec(query.limit(1)).first() or ""

    @cached_property
    def claimed(self) -> dict[str, Claimed]:
        """Voucher → where what was claimed of it is: P9 by reservation, P10 by batch, P11, P12 and P14 by line."""
        lines = {row.id: row for row in self.session.exec(select(ClaimLine))}
        clawbacks = {row.id: row for row in self.session.exec(select(Clawback))}
        standing: dict[tuple[str, str], int] = defaultdict(int)  # (batch, reservation) → fen
        paid: set[str] = set()
        found: dict[str, Claimed] = defaultdict(Claimed)
        for transfer, entries in self.transfers("P9", "P10", "P11", "P12", "P14"):
            key = transfer.event_key.partition(":")[2]
            fen = max((each.amount_fen for each in entries if each.account.startswith("Q.")), default=0)
            if transfer.kind == "P9":
                for entry in entries:
                    if entry.account.startswith("Q.used["):
                        standing[key, entry.account[7:-1]] -= entry.amount_fen
            elif transfer.kind == "P10":
                paid.add(key)
            elif transfer.kind in ("P11", "P12"):
                line = lines[key]
                standing[line.batch_id, line.reservation_id] -= fen
                found[line.voucher_id].rejected += fen if transfer.kind == "P12" else 0
            elif fen:  # P14; its end moves no entitlement
                line = lines[clawbacks[key].line_id]
                standing[line.batch_id, line.reservation_id] -= fen
                found[line.voucher_id].clawed += fen
        for (batch, reservation), fen in standing.items():
            if row := self.reservations.get(reservation):
                where = found[row.voucher_id]
                where.paid += fen if batch in paid else 0
                where.batched += 0 if batch in paid else fen
        return found


def _turnover(amount: Any) -> tuple[Any, Any]:
    """What went into an account and out of it."""
    return sa.func.sum(sa.case((amount > 0, amount), else_=0)), sa.func.sum(sa.case((amount < 0, -amount), else_=0))
