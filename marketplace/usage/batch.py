"""One batch of usage into the ledger, in one transaction: usage rows, P5 per reservation and self-paid subscription.

Locks are taken in the order of `vouchers.locks`: epoch, reservations, leases, meters, vouchers, caps, accounts.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from marketplace.clock import now_ms, policy_date
from marketplace.ledger.posting import QUERY_CHUNK, insert_ignoring
from marketplace.usage.charges import Sum, charge, meter, meter_of
from marketplace.usage.rating import Late, LeaseBasis, Rated, rate
from marketplace.usage.tables import TrialCount, Usage
from marketplace.vouchers.lease_rows import month_of
from marketplace.vouchers.tables import LeaseRow, NodeEpoch, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_cap
from marketplace.vouchers.write_offs import leases_of_write_off
from serving.metering import UsageRecord

_USAGE: sa.Table = Usage.__table__  # type: ignore[attr-defined]
_COLUMNS = tuple(column.name for column in _USAGE.columns)
_HOUR_MS = 3_600_000


class DuplicateInFlight(Exception):
    """Another writer inserted one of these usage ids meanwhile; the transaction must be tried again."""


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
    bases = _load_leases(session, epoch, {record.lease_id for _, record in fresh})
    sums: dict[tuple[str, str], Sum] = defaultdict(Sum)  # (reservation or "", subscription)
    months: dict[tuple[str, str], int] = defaultdict(int)
    trials: dict[tuple[str, str], int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    at, node, number = now_ms(), epoch.node, epoch.epoch
    for seq, record in fresh:
        basis = bases.get(record.lease_id)
        own_before = basis.own_micro if basis else 0
        rated = rate(record, basis, node, number)
        row = _usage_row(record, basis, rated)
        row |= {"node": node, "epoch": number, "seq": seq, "ingested_at_ms": at}
        rows.append(row)
        if rated.reason:
            outcome.quarantined += 1
            continue
        if record.purpose == "trial":
            day = policy_date(record.occurred_at_ms).isoformat()
            trials[record.organisation, day] += max(1, record.units.get("rows", 1))
        if basis is None or basis.kind == "free":
            continue
        part = sums[basis.contract]
        part.gross_micro += record.amount_micro
        part.eligible_micro += record.amount_micro if rated.eligible else 0
        part.last_ms = max(part.last_ms, record.occurred_at_ms)
        part.rows.append(row)
        months[basis.contract[1], _month_of_hour(record.occurred_at_ms // _HOUR_MS)] += basis.own_micro - own_before
    dues = meter(session, sums)
    _count_months(session, months)
    outcome.postings = charge(session, dues, event)
    _insert(session, rows)
    outcome.inserted = len(rows)
    for basis in bases.values():
        basis.row.eligible_micro, basis.row.own_micro = basis.eligible_micro, basis.own_micro
        session.add(basis.row)
    _count_trials(session, trials)
    return outcome


def _without_known(session: Session, records: Sequence[tuple[int, UsageRecord]]) -> list[tuple[int, UsageRecord]]:
    """Each usage id once, and none that is in the table already: a retry under one idempotency key is billed once."""
    first: dict[str, tuple[int, UsageRecord]] = {}
    for seq, record in records:
        first.setdefault(record.usage_id, (seq, record))
    ids = list(first)
    connection = session.connection()
    for start in range(0, len(ids), QUERY_CHUNK):
        some = ids[start : start + QUERY_CHUNK]
        # straight to the driver: expanding thousands of parameters would take longer than finding them
        if _is_postgresql(session):
            found = connection.exec_driver_sql("SELECT usage_id FROM usage WHERE usage_id = ANY(%s)", (some,))
        else:
            marks = ", ".join("?" * len(some))
            found = connection.exec_driver_sql(f"SELECT usage_id FROM usage WHERE usage_id IN ({marks})", tuple(some))  # noqa: S608
        for usage_id in found.scalars():
            del first[usage_id]
    return list(first.values())


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _load_leases(session: Session, epoch: NodeEpoch, lease_ids: Iterable[str]) -> dict[str, LeaseBasis]:
    """The leases of a batch with their reservations and vouchers; reservations and leases locked, in that order."""
    written_off = leases_of_write_off(session, epoch) if epoch.state == "late" else {}
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
        late = None
        if row.id in written_off and row.kind != "free":
            known = written_off[row.id]
            late = Late(known["eligible_micro"], known["restored_fen"], row.credit_micro)
        bases[row.id] = LeaseBasis.of(row, reservation, voucher, late, skewed=bool(epoch.skew_ms))
    return bases


def _count_months(session: Session, months: dict[tuple[str, str], int]) -> None:
    """The enterprise's own cost per month, for the cap and its warnings."""
    for (subscription_id, month), micro in sorted(months.items()):
        row = meter_of(session, subscription_id, month)
        row.cum_gross_micro += micro
        session.add(row)
        warn_of_cap(session, session.get_one(Subscription, subscription_id), month, row.cum_gross_micro)


def _count_trials(session: Session, trials: dict[tuple[str, str], int]) -> None:
    for (organisation_id, day), runs in sorted(trials.items()):
        values = {"organisation_id": organisation_id, "day": day, "runs": 0}
        session.connection().execute(insert_ignoring(session, TrialCount).values(**values))
        count = session.get_one(TrialCount, (organisation_id, day), with_for_update=True)
        count.runs += runs
        session.add(count)


def _usage_row(record: UsageRecord, basis: LeaseBasis | None, rated: Rated) -> dict[str, Any]:
    """The row but for where it was read. Usage within a voucher's lease that is past its use-by day or its filing's end
    counts as self-paid."""
    kind, contract = "free", ("", "")
    if basis is not None and rated.reason != "LEASE_FOREIGN":
        kind, contract = basis.kind, basis.contract
        if kind == "subsidised" and not rated.eligible:
            kind = "self_pay"
    return {
        "usage_id": record.usage_id,
        "key_id": record.key_id,
        "organisation_id": record.organisation,
        "listing_id": rated.listing_id,
        "model": record.model,
        "adapter": record.adapter,
        "price_version": record.price_version,
        "lease_id": record.lease_id,
        "lease_kind": kind,
        "subscription_id": contract[1],
        "reservation_id": contract[0],
        "provider_id": rated.provider_id,
        "filing_id": rated.filing_id,
        "units": msgspec.json.encode(record.units).decode(),
        "amount_micro": record.amount_micro,
        "occurred_at_ms": record.occurred_at_ms,
        "status": "quarantined" if rated.reason else record.status,
        "reason": rated.reason,
        "purpose": record.purpose,
        "request_digest": record.request_digest,
        "response_digest": record.response_digest,
        "transfer_id": None,
    }


@lru_cache(maxsize=1_000)
def _month_of_hour(hour: int) -> str:
    """The Shanghai month of an hour since 1970 (months begin on the hour there; a batch spans a few hours)."""
    return month_of(hour * _HOUR_MS)


def _insert(session: Session, rows: list[dict[str, Any]]) -> None:
    """All of them or none: what is charged in this transaction must be what is inserted in it.

    Straight to the driver: compiling parameters for each of thousands of rows would take half of ingest's time; and on
    PostgreSQL by COPY, which takes a quarter of what as many INSERTs take.
    """
    connection = session.connection()
    take = operator.itemgetter(*_COLUMNS)
    columns = ", ".join(_COLUMNS)
    try:
        if _is_postgresql(session):
            driver: Any = connection.connection.driver_connection
            with driver.cursor() as cursor, cursor.copy(f"COPY usage ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(take(row))
        else:
            marks = ", ".join("?" * len(_COLUMNS))
            connection.exec_driver_sql(f"INSERT INTO usage ({columns}) VALUES ({marks})", [take(row) for row in rows])  # noqa: S608
    except (IntegrityError, connection.dialect.loaded_dbapi.IntegrityError) as error:
        raise DuplicateInFlight("another writer has inserted one of these usage ids meanwhile") from error
