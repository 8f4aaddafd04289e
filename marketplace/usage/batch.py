"""One batch of usage into the ledger, in one transaction: usage rows, P5 per reservation and self-paid subscription.

Locks are taken in one order everywhere: epoch, reservations, leases, meters, caps, accounts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from marketplace.clock import now_ms, policy_date
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import QUERY_CHUNK, Posting, balances, insert_ignoring, post_all
from marketplace.usage.charging import Charge, Meter, accumulate, decide_draws
from marketplace.usage.rating import LeaseBasis, Rated, rate
from marketplace.usage.tables import SelfPayMeter, TrialCount, Usage
from marketplace.vouchers.lease_rows import month_of
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import LeaseRow, NodeEpoch, Programme, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_cap, warn_of_voucher
from serving.metering import UsageRecord

SELF_PAY_TERMS = postings.Terms()  # outside a programme nothing is cut from gross
_USAGE: sa.Table = Usage.__table__  # type: ignore[attr-defined]


class DuplicateInFlight(Exception):
    """Another writer inserted one of these usage ids meanwhile; the transaction must be tried again."""


@dataclass(slots=True)
class _Sum:
    """What one batch adds to one reservation or subscription."""

    gross_micro: int = 0
    eligible_micro: int = 0
    last_ms: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What became of a batch."""

    inserted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    postings: int = 0


def ingest_batch(session: Session, epoch: NodeEpoch, records: Sequence[tuple[int, UsageRecord]], event: str) -> Outcome:
    """Insert, rate again and charge `records` [(sequence number, record)] of a locked epoch. `event` names the batch.

    Answers what became of it. Raises `DuplicateInFlight`; on any exception the caller rolls all of it back.
    """
    outcome = Outcome()
    fresh = _without_known(session, records)
    outcome.duplicates = len(records) - len(fresh)
    if not fresh:
        return outcome
    bases = _load_leases(session, {record.lease_id for _, record in fresh})
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)  # (reservation or "", subscription)
    months: dict[tuple[str, str], int] = defaultdict(int)
    trials: dict[tuple[str, str], int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    at = now_ms()
    for seq, record in fresh:
        basis = bases.get(record.lease_id)
        own_before = basis.own_micro if basis else 0
        rated = rate(record, basis, epoch.node, epoch.epoch)
        row = _usage_row(record, basis, rated, epoch, seq, at)
        rows.append(row)
        if rated.reason:
            outcome.quarantined += 1
            continue
        if record.purpose == "trial":
            day = policy_date(record.occurred_at_ms).isoformat()
            trials[record.organisation, day] += max(1, record.units.get("rows", 1))
        if basis is None or basis.row.kind == "free":
            continue
        part = sums[basis.row.reservation_id, basis.row.subscription_id]
        part.gross_micro += record.amount_micro
        part.eligible_micro += record.amount_micro if rated.eligible else 0
        part.last_ms = max(part.last_ms, record.occurred_at_ms)
        part.rows.append(row)
        months[basis.row.subscription_id, month_of(record.occurred_at_ms)] += basis.own_micro - own_before
    outcome.postings = _charge(session, sums, event)
    _insert(session, rows)
    outcome.inserted = len(rows)
    for basis in bases.values():
        basis.row.eligible_micro, basis.row.own_micro = basis.eligible_micro, basis.own_micro
        session.add(basis.row)
    _count_months(session, months)
    _count_trials(session, trials)
    return outcome


def _without_known(session: Session, records: Sequence[tuple[int, UsageRecord]]) -> list[tuple[int, UsageRecord]]:
    """Each usage id once, and none that is in the table already: a retry under one idempotency key is billed once."""
    first: dict[str, tuple[int, UsageRecord]] = {}
    for seq, record in records:
        first.setdefault(record.usage_id, (seq, record))
    ids = list(first)
    for start in range(0, len(ids), QUERY_CHUNK):
        known = sa.select(_USAGE.c.usage_id).where(_USAGE.c.usage_id.in_(ids[start : start + QUERY_CHUNK]))
        for usage_id in session.connection().execute(known).scalars():
            del first[usage_id]
    return list(first.values())


def _load_leases(session: Session, lease_ids: Iterable[str]) -> dict[str, LeaseBasis]:
    """The leases of a batch with their reservations and vouchers; reservations and leases locked, in that order."""
    wanted = sorted(lease_ids)
    reservation_ids = sorted(
        set(session.exec(select(LeaseRow.reservation_id).where(col(LeaseRow.id).in_(wanted)))) - {""}
    )
    query = select(Reservation).where(col(Reservation.id).in_(reservation_ids)).order_by(col(Reservation.id))
    reservations = {row.id: row for row in session.exec(query.with_for_update())}
    voucher_ids = sorted({row.voucher_id for row in reservations.values()})
    vouchers = {row.id: row for row in session.exec(select(Voucher).where(col(Voucher.id).in_(voucher_ids)))}
    leases = select(LeaseRow).where(col(LeaseRow.id).in_(wanted)).order_by(col(LeaseRow.id)).with_for_update()
    bases = {}
    for row in session.exec(leases):
        reservation = reservations.get(row.reservation_id)
        voucher = vouchers[reservation.voucher_id] if reservation else None
        bases[row.id] = LeaseBasis.of(row, reservation, voucher)
    return bases


def _charge(session: Session, sums: dict[tuple[str, str], _Sum], event: str) -> int:
    """P5 for each reservation and self-paid subscription that has whole fen to post; answers how many."""
    planned: list[tuple[Posting, _Sum, str, str]] = []
    for (reservation_id, subscription_id), part in sorted(sums.items()):
        if reservation_id:
            posting, had_waiting = _charge_reservation(session, reservation_id, part, event)
        else:
            posting, had_waiting = _charge_self_pay(session, subscription_id, part, event)
        if posting is not None:
            planned.append((posting, part, subscription_id if had_waiting else "", reservation_id))
    transfers = post_all(session, [posting for posting, *_ in planned])
    for transfer, (_, part, waiting, reservation_id) in zip(transfers, planned, strict=True):
        for row in part.rows:
            row["transfer_id"] = transfer.id
        if waiting:
            session.connection().execute(
                _USAGE.update()
                .where(
                    _USAGE.c.subscription_id == waiting,
                    _USAGE.c.reservation_id == reservation_id,
                    _USAGE.c.transfer_id.is_(None),
                    _USAGE.c.status != "quarantined",
                )
                .values(transfer_id=transfer.id)
            )
    return len(planned)


def _charge_reservation(session: Session, reservation_id: str, part: _Sum, event: str) -> tuple[Posting | None, bool]:
    reservation = session.get_one(Reservation, reservation_id)
    voucher = session.get_one(Voucher, reservation.voucher_id)
    rules = rules_of(session.get_one(Programme, voucher.programme_id))
    before = Meter(
        reservation.cum_gross_micro,
        reservation.cum_eligible_micro,
        reservation.posted_gross_fen,
        reservation.posted_subsidy_fen,
    )
    charge = accumulate(before, part.gross_micro, part.eligible_micro, reservation.ratio_num, reservation.ratio_den)
    _keep(session, reservation, charge)
    if not charge.gross_fen:
        return None, False
    draws: dict[str, int] = {}
    if charge.subsidy_fen:
        draws = decide_draws(_drawable(session, reservation_id), charge.subsidy_fen)
        for code in sorted(
            (
                accounts.cap_contract(reservation.subscription_id),
                accounts.cap_pool(voucher.programme_id, voucher.tranche),
                voucher.cap_code,
            )
        ):
            caps.use(session, caps.open_cap(session, code, 0), charge.subsidy_fen)
        warn_of_voucher(session, voucher)
    posting = postings.p5_used(
        event=f"{reservation_id}:{event}",
        enterprise=voucher.organisation_id,
        provider=reservation.provider_id,
        gross_fen=charge.gross_fen,
        posted_gross_fen=before.posted_gross_fen,
        terms=rules.terms(),
        occurred_at_ms=part.last_ms,
        programme=voucher.programme_id,
        reservation=reservation_id,
        mode=rules.settlement_mode or "reimburse",
        draws=draws,
    )
    return posting, _had_waiting(before)


def _charge_self_pay(session: Session, subscription_id: str, part: _Sum, event: str) -> tuple[Posting | None, bool]:
    subscription = session.get_one(Subscription, subscription_id)
    meter = _meter(session, subscription_id, "")
    before = Meter(gross_micro=meter.cum_gross_micro, posted_gross_fen=meter.posted_gross_fen)
    charge = accumulate(before, part.gross_micro, 0)
    meter.cum_gross_micro, meter.posted_gross_fen = charge.meter.gross_micro, charge.meter.posted_gross_fen
    session.add(meter)
    if not charge.gross_fen:
        return None, False
    posting = postings.p5_used(
        event=f"{subscription_id}:{event}",
        enterprise=subscription.organisation_id,
        provider=subscription.provider_id,
        gross_fen=charge.gross_fen,
        posted_gross_fen=before.posted_gross_fen,
        terms=SELF_PAY_TERMS,
        occurred_at_ms=part.last_ms,
    )
    return posting, _had_waiting(before)


def _had_waiting(before: Meter) -> bool:
    """Whether usage of earlier batches may still wait for the transfer that carries it."""
    return before.gross_micro > before.posted_gross_fen * 1_000_000


def _keep(session: Session, reservation: Reservation, charge: Charge) -> None:
    meter = charge.meter
    reservation.cum_gross_micro, reservation.cum_eligible_micro = meter.gross_micro, meter.eligible_micro
    reservation.posted_gross_fen, reservation.posted_subsidy_fen = meter.posted_gross_fen, meter.posted_subsidy_fen
    session.add(reservation)


def _drawable(session: Session, reservation_id: str) -> list[tuple[str, int]]:
    """What the reservation's leases hold: sealed ones first (they only wait for this), then the oldest."""
    query = select(LeaseRow.id, LeaseRow.state).where(
        LeaseRow.reservation_id == reservation_id, LeaseRow.state != "settled"
    )
    leases = sorted(session.exec(query), key=lambda each: (each[1] != "sealed", each[0]))
    held = balances(session, [accounts.leased(lease) for lease, _ in leases])
    return [(lease, held[accounts.leased(lease)]) for lease, _ in leases]


def _meter(session: Session, subscription_id: str, month: str) -> SelfPayMeter:
    key = {"subscription_id": subscription_id, "month": month}
    zero = {"cum_gross_micro": 0, "posted_gross_fen": 0}
    session.connection().execute(insert_ignoring(session, SelfPayMeter).values(**key, **zero))
    return session.get_one(SelfPayMeter, (subscription_id, month), with_for_update=True)


def _count_months(session: Session, months: dict[tuple[str, str], int]) -> None:
    """The enterprise's own cost per month, for the cap and its warnings."""
    for (subscription_id, month), micro in sorted(months.items()):
        meter = _meter(session, subscription_id, month)
        meter.cum_gross_micro += micro
        session.add(meter)
        warn_of_cap(session, session.get_one(Subscription, subscription_id), month, meter.cum_gross_micro)


def _count_trials(session: Session, trials: dict[tuple[str, str], int]) -> None:
    for (organisation_id, day), runs in sorted(trials.items()):
        values = {"organisation_id": organisation_id, "day": day, "runs": 0}
        session.connection().execute(insert_ignoring(session, TrialCount).values(**values))
        count = session.get_one(TrialCount, (organisation_id, day), with_for_update=True)
        count.runs += runs
        session.add(count)


def _usage_row(
    record: UsageRecord, basis: LeaseBasis | None, rated: Rated, epoch: NodeEpoch, seq: int, at: int
) -> dict[str, Any]:
    lease = basis.row if basis is not None and rated.reason != "LEASE_FOREIGN" else None
    charged_as = lease.kind if lease else "free"
    if charged_as == "subsidised" and not rated.eligible:
        charged_as = "self_pay"  # within a voucher's lease, but past its use-by day or the filing's end
    return {
        "usage_id": record.usage_id, "key_id": record.key_id, "organisation_id": record.organisation,
        "listing_id": rated.listing_id, "model": record.model, "adapter": record.adapter,
        "price_version": record.price_version, "lease_id": record.lease_id,
        "lease_kind": charged_as, "subscription_id": lease.subscription_id if lease else "",
        "reservation_id": lease.reservation_id if lease else "",
        "provider_id": rated.provider_id, "units": record.units, "amount_micro": record.amount_micro,
        "occurred_at_ms": record.occurred_at_ms, "status": "quarantined" if rated.reason else record.status,
        "reason": rated.reason, "purpose": record.purpose, "request_digest": record.request_digest,
        "response_digest": record.response_digest, "node": epoch.node, "epoch": epoch.epoch, "seq": seq,
        "transfer_id": None, "ingested_at_ms": at,
    }  # fmt: skip


def _insert(session: Session, rows: list[dict[str, Any]]) -> None:
    """All of them or none: what is charged in this transaction must be what is inserted in it."""
    try:
        session.connection().execute(_USAGE.insert(), rows)
    except IntegrityError as error:
        raise DuplicateInFlight("another writer has inserted one of these usage ids meanwhile") from error
