"""Reading what signals look at: aggregated in SQL per enterprise, so that a million calls are never in memory at once.

Calls are read by (enterprise, time), which usage is indexed by; only what vouchers pay for is looked at, without
records that a correction has taken back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from marketplace.claims.tables import Correction, Invoice
from marketplace.clock import policy_date, start_of_day_ms
from marketplace.evidence.tables import EvidenceFile
from marketplace.findings import contract_signals, usage_signals
from marketplace.findings.found import SHOWN, Bill, Contract, Found, Repeat, Sample, Spacing
from marketplace.findings.parties import declarations
from marketplace.findings.spending import drawn, spent
from marketplace.usage.tables import Usage
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.signals import Signals
from marketplace.vouchers.tables import Programme, Reservation, Subscription, Voucher

DAY_MS = 86_400_000
SHANGHAI_MS = 8 * 3_600_000  # no summer time since 1991
RUNS = ("active", "frozen", "closed")  # programmes that are looked at
CHUNK = 1_000
_Record = tuple[str, int | None]  # usage id, and the charge that carries it


def find_all(session: Session, at_ms: int) -> list[Found]:
    """Everything that the signals of all programmes find now, with its sample of usage, in a fixed order."""
    found = contract_signals.find_reused_invoices(_bills(session))
    for programme in session.exec(select(Programme).where(col(Programme.state).in_(RUNS)).order_by(col(Programme.id))):
        found += _of_programme(session, programme.id, rules_of(programme), at_ms)
    return _with_samples(session, found)


def _of_programme(session: Session, programme: str, rules: ProgrammeFile, at_ms: int) -> list[Found]:
    today, signals = policy_date(at_ms), rules.signals
    contracts = _contracts(session, programme)
    settled = [replace(row, **facts) for row, facts in spent(session, programme, contracts)]
    parties, above = declarations(session, settled)
    found = contract_signals.find_related(settled, parties, above, rules, programme)
    found += contract_signals.find_shared_persons(settled, parties, programme)
    found += contract_signals.find_shared_contacts(settled, parties, programme)
    found += contract_signals.find_spend_just_over(settled, rules, programme, today)
    found += contract_signals.find_contracts_just_over(settled, rules, programme)
    found += usage_signals.find_bursts(drawn(session, programme, signals), signals, programme, today.isoformat())
    since = start_of_day_ms(today - timedelta(days=signals.window_days))
    for enterprise in sorted({row.organisation for row in contracts}):
        calls = _Calls(session, programme, enterprise, since, at_ms, {row.id: row for row in contracts})
        found += usage_signals.find_constant_intervals(calls.spacings(signals), signals, programme)
        found += usage_signals.find_identical_requests(calls.repeats(signals), signals, programme)
    return found


def _contracts(session: Session, programme: str) -> list[Contract]:
    """Contracts that a voucher of the programme ever set something aside for."""
    query = (
        select(Subscription)
        .join(Reservation, col(Reservation.subscription_id) == col(Subscription.id))
        .join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
        .where(Voucher.programme_id == programme)
        .distinct()
        .order_by(col(Subscription.id))
    )
    return [Contract(row.id, row.organisation_id, row.provider_id, row.contract_fen) for row in session.exec(query)]


def _bills(session: Session) -> Iterator[Bill]:
    """Invoices with the originals that count; older ones carry their file's hash themselves."""
    originals: dict[str, set[str]] = defaultdict(set)
    handed_in = select(EvidenceFile.subject_id, EvidenceFile.sha256).where(
        EvidenceFile.of == "invoice", col(EvidenceFile.withdrawn_at_ms).is_(None)
    )
    for invoice, digest in session.exec(handed_in):
        originals[invoice].add(digest)
    for row in session.exec(select(Invoice).order_by(col(Invoice.id)).execution_options(yield_per=CHUNK)):
        files = tuple(sorted(originals[row.id] | ({row.sha256} - {""})))
        yield Bill(row.id, row.number, row.subscription_id, row.organisation_id, row.provider_id, row.amount_fen, files)


class _Calls:
    """The calls of one enterprise that vouchers of one programme pay for, aggregated by the database."""

    def __init__(
        self, session: Session, programme: str, enterprise: str, since_ms: int, until_ms: int,
        contracts: dict[str, Contract],
    ) -> None:  # fmt: skip
        self._session, self._contracts = session, contracts
        paid = (
            sa.select(col(Reservation.id))
            .join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
            .where(col(Voucher.programme_id) == programme, col(Voucher.organisation_id) == enterprise)
        )
        taken_back = sa.select(col(Correction.usage_id)).where(col(Correction.state) == "posted")
        self._where = (
            col(Usage.organisation_id) == enterprise,
            col(Usage.occurred_at_ms) >= since_ms,
            col(Usage.occurred_at_ms) <= until_ms,
            col(Usage.lease_kind) == "subsidised",
            col(Usage.status) == "ok",
            col(Usage.purpose) == "use",
            col(Usage.reservation_id).in_(paid),
            col(Usage.usage_id).not_in(taken_back),
        )

    def _rows(self, query: Any) -> Any:
        return self._session.connection().execute(query, execution_options={"yield_per": CHUNK})

    def spacings(self, signals: Signals) -> Iterator[Spacing]:
        """By contract, key and day in Asia/Shanghai, where there are enough calls for it."""
        day = ((col(Usage.occurred_at_ms) + SHANGHAI_MS) // DAY_MS).label("day")
        of = (col(Usage.subscription_id), col(Usage.key_id), day)
        at = col(Usage.occurred_at_ms)
        before = sa.func.lag(at).over(partition_by=of, order_by=(at, col(Usage.usage_id)))
        calls = sa.select(*of, (at - before).label("gap"), col(Usage.amount_micro)).where(*self._where).subquery()
        c, count = calls.c, sa.func.count()
        query = (
            sa.select(
                c.subscription_id, c.key_id, c.day, count, sa.func.coalesce(sa.func.sum(c.gap), 0),
                sa.func.coalesce(sa.func.sum(c.gap * c.gap), 0), sa.func.sum(c.amount_micro),
            )
            .group_by(c.subscription_id, c.key_id, c.day)
            .having(count >= signals.interval_calls)
        )  # fmt: skip
        for contract, key, number, many, gaps, squares, micro in self._rows(query):
            on = date.fromordinal(date(1970, 1, 1).toordinal() + int(number)).isoformat()
            yield Spacing(self._contracts[contract], key, on, many, int(gaps), int(squares), int(micro))

    def repeats(self, signals: Signals) -> Iterator[Repeat]:
        """By contract, model and request, where there are enough of them."""
        count, at = sa.func.count(), col(Usage.occurred_at_ms)
        of = (col(Usage.subscription_id), col(Usage.model), col(Usage.request_digest))
        query = (
            sa.select(*of, count, sa.func.sum(col(Usage.amount_micro)), sa.func.min(at), sa.func.max(at))
            .where(*self._where, col(Usage.request_digest) != "")
            .group_by(*of)
            .having(count >= signals.identical_calls)
        )
        found = list(self._rows(query))
        if not found:
            return
        per_contract = sa.select(col(Usage.subscription_id), count).where(*self._where)
        totals = {key: int(many) for key, many in self._rows(per_contract.group_by(col(Usage.subscription_id)))}
        for contract, model, digest, many, micro, first, last in found:
            days = (policy_date(first).isoformat(), policy_date(last).isoformat())
            yield Repeat(self._contracts[contract], model, digest, many, totals[contract], int(micro), *days)


def _with_samples(session: Session, found: Sequence[Found]) -> list[Found]:
    """The findings with the first of their usage records and of the charges that carry those, to look at by hand."""
    requests: dict[tuple[str, str], set[str]] = defaultdict(set)
    for each in found:
        if each.sample and not each.sample.day:
            requests[each.organisation, each.sample.contract].add(each.sample.digest)
    rows: dict[Sample, list[_Record]] = {}
    for (enterprise, contract), digests in requests.items():
        rows |= _of_requests(session, enterprise, contract, sorted(digests))
    return [_with_sample(session, each, rows) for each in found]


def _with_sample(session: Session, found: Found, of_requests: dict[Sample, list[_Record]]) -> Found:
    sample = found.sample
    if sample is None:
        return found
    rows = _of_day(session, found.organisation, sample) if sample.day else of_requests.get(sample, [])
    charges = sorted({transfer for _, transfer in rows if transfer is not None})
    return replace(found, evidence=found.evidence | {"usage_ids": [usage for usage, _ in rows], "charges": charges})


def _paid(enterprise: str, contract: str) -> tuple[Any, ...]:
    return (
        col(Usage.organisation_id) == enterprise, col(Usage.subscription_id) == contract,
        col(Usage.lease_kind) == "subsidised", col(Usage.status) == "ok", col(Usage.purpose) == "use",
    )  # fmt: skip


def _of_day(session: Session, enterprise: str, sample: Sample) -> list[_Record]:
    """The first records of one key on one day."""
    start = start_of_day_ms(date.fromisoformat(sample.day))
    query = sa.select(col(Usage.usage_id), col(Usage.transfer_id)).where(
        *_paid(enterprise, sample.contract),
        col(Usage.key_id) == sample.key,
        col(Usage.occurred_at_ms) >= start,
        col(Usage.occurred_at_ms) < start + DAY_MS,
    )
    rows = session.connection().execute(query.order_by(col(Usage.usage_id)).limit(SHOWN))
    return [(usage, transfer) for usage, transfer in rows]


def _of_requests(
    session: Session, enterprise: str, contract: str, digests: Sequence[str]
) -> dict[Sample, list[_Record]]:
    """The first records of each of these requests: its contract is gone through once for all of them."""
    found: dict[Sample, list[_Record]] = defaultdict(list)
    request = (col(Usage.model), col(Usage.request_digest))
    for start in range(0, len(digests), CHUNK):
        place = sa.func.row_number().over(partition_by=request, order_by=col(Usage.usage_id)).label("place")
        placed = (
            sa.select(*request, col(Usage.usage_id), col(Usage.transfer_id), place)
            .where(*_paid(enterprise, contract), col(Usage.request_digest).in_(digests[start : start + CHUNK]))
            .subquery()
        )
        query = sa.select(placed).where(placed.c.place <= SHOWN).order_by(placed.c.usage_id)
        for model, digest, usage, transfer, _ in session.connection().execute(query):
            found[Sample(contract, model=model, digest=digest)].append((usage, transfer))
    return found
