"""What was charged and stands in no line yet: each charge (P5) with the corrections (P13) that take back of it.

A charge belongs to the day of the last use in it, among the records whose ingest made it whole: its `occurred_at_ms` is
that record's. Older use that arrived with it or had waited for it goes along, of whatever day. So does younger use that
had waited, being less than a fen, from another node's journal that was ingested before. `integrity.verify_times` holds
packs to this. A correction has no day of its own here: it goes with the charge of the record that it takes back,
whenever it was posted, so that no batch claims whole what was corrected in part.

A charge that no fen of the voucher went into is claimed too, where use is in it that the voucher pays its share of: its
share waits for a later charge, whose fen is a share of both. One of other use alone is no part of a claim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimedTransfer, Correction
from marketplace.clock import end_of_day_ms, start_of_day_ms
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import Reservation, Voucher

_USED = accounts.used("")[:-1]  # what the accounts of use begin with
_CHUNK = 1_000  # bound parameters of one statement
_PORTION = 10_000  # rows of one reading


@dataclass(frozen=True, slots=True)
class Charged:
    """One transfer's part under one reservation. A correction's amounts are negative.

    Of a correction, `usage_id` is the record that it takes back, `reverses` the charge that this is carried by; 0 where
    nobody can claim that (any more), as it stands in a line or came after the correction, or where that has no subsidy
    and is of other days, so that there may never be a line for it to wait for.
    """

    transfer_id: int
    kind: str
    event_key: str
    occurred_at_ms: int
    gross_fen: int
    subsidy_fen: int
    usage_id: str = ""
    reverses: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """A charge and what was taken back of it: claimed together or not at all."""

    charges: tuple[Charged, ...]

    @property
    def gross_fen(self) -> int:
        return sum(charge.gross_fen for charge in self.charges)

    @property
    def subsidy_fen(self) -> int:
        return sum(charge.subsidy_fen for charge in self.charges)


def decide_units(charges: Sequence[Charged], corrections: Sequence[Charged]) -> list[Unit]:
    """One reservation's charges of a period in order, each with its corrections; those of other charges are left out.

    What reverses no charge that can be claimed still took its subsidy out of what is there: it goes with the first.
    Where it took no subsidy there is nothing to settle by it.
    """
    parts: dict[int, list[Charged]] = {charge.transfer_id: [charge] for charge in charges}
    for each in corrections:
        if each.reverses in parts:
            parts[each.reverses].append(each)
        elif not each.reverses and each.subsidy_fen and parts:
            next(iter(parts.values())).append(each)
    return [Unit(tuple(part)) for part in parts.values()]


def unclaimed(
    session: Session, programme_id: str, from_day: date, to_day: date, *, lock: bool = False
) -> dict[str, list[Unit]]:
    """Reservation → what can be claimed of it in these days. `lock`: nobody corrects anything under these reservations
    until the transaction ends (a correction takes the same lock first)."""
    charges = _charges(session, programme_id, from_day, to_day)
    if lock:
        query = select(Reservation.id).where(col(Reservation.id).in_(charges)).order_by(col(Reservation.id))
        session.exec(query.with_for_update()).all()
    charges = _without_stripped(session, charges)
    corrections = _corrections(session, charges)
    return {code: decide_units(found, corrections.get(code, ())) for code, found in charges.items()}


def _charges(session: Session, programme_id: str, from_day: date, to_day: date) -> dict[str, list[Charged]]:
    """The unclaimed charges by reservation, each in the order in which they were posted.

    Their event names the reservation: those without a subsidy have no entry in Q.
    """
    of_programme = select(Reservation.id).join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
    reservations = set(session.exec(of_programme.where(Voucher.programme_id == programme_id)))
    query = (
        select(LedgerTransfer)
        .where(
            LedgerTransfer.kind == "P5",
            LedgerTransfer.occurred_at_ms >= start_of_day_ms(from_day),
            LedgerTransfer.occurred_at_ms <= end_of_day_ms(to_day),
            col(LedgerTransfer.id).not_in(select(ClaimedTransfer.transfer_id)),
        )
        .order_by(col(LedgerTransfer.id))
    )
    rows = []
    for transfer in session.exec(query.execution_options(yield_per=_PORTION)):  # self-paid ones too, and not kept
        reservation = transfer.event_key.split(":")[1]
        if reservation in reservations:
            rows.append((transfer, reservation))
    amounts = _amounts(session, [transfer.id or 0 for transfer, _ in rows])
    charges = [(reservation, _charged(transfer, amounts)) for transfer, reservation in rows]
    shared = _shared(session, [charge.transfer_id for _, charge in charges if not charge.subsidy_fen])
    found: dict[str, list[Charged]] = defaultdict(list)
    for reservation, charge in charges:
        if charge.subsidy_fen or charge.transfer_id in shared:
            found[reservation].append(charge)
    return dict(found)


def _shared(session: Session, transfer_ids: Sequence[int]) -> set[int]:
    """Which of these charges carry use that the voucher pays its share of."""
    found: set[int] = set()
    for start in range(0, len(transfer_ids), _CHUNK):
        query = select(Usage.transfer_id).where(
            col(Usage.transfer_id).in_(transfer_ids[start : start + _CHUNK]), Usage.lease_kind == "subsidised"
        )
        found.update(transfer for transfer in session.exec(query.distinct()) if transfer is not None)
    return found


def _without_stripped(session: Session, charges: Mapping[str, Sequence[Charged]]) -> dict[str, list[Charged]]:
    """Less those without subsidy of which a correction stands in a line: it went with another charge (`decide_units`),
    and without it they would be claimed whole. Nothing is lost by it, they have no fen of the voucher."""
    query = (
        select(Usage.transfer_id)
        .join(Correction, col(Correction.usage_id) == col(Usage.usage_id))
        .join(ClaimedTransfer, col(ClaimedTransfer.transfer_id) == col(Correction.transfer_id))
        .where(col(Usage.transfer_id) < col(Correction.transfer_id))
    )
    stripped = set(session.exec(query.distinct()))
    left = {
        code: [each for each in found if each.subsidy_fen or each.transfer_id not in stripped]
        for code, found in charges.items()
    }
    return {code: found for code, found in left.items() if found}


def _corrections(session: Session, charges: Mapping[str, Sequence[Charged]]) -> dict[str, list[Charged]]:
    """The corrections under the reservations of these charges that no line has, whenever they were posted."""
    query = (
        select(LedgerTransfer, Usage)
        .join(Correction, col(Correction.transfer_id) == col(LedgerTransfer.id))
        .join(Usage, col(Usage.usage_id) == col(Correction.usage_id))
        .where(Usage.reservation_id != "", col(LedgerTransfer.id).not_in(select(ClaimedTransfer.transfer_id)))
        .order_by(col(LedgerTransfer.id))
    )
    rows = [row for row in session.exec(query) if row[1].reservation_id in charges]
    amounts = _amounts(session, [transfer.id or 0 for transfer, _ in rows])
    claimable = _claimable(session, {usage.transfer_id for _, usage in rows if usage.transfer_id})
    claimable.update(charge.transfer_id for part in charges.values() for charge in part)
    found: dict[str, list[Charged]] = defaultdict(list)
    for transfer, usage in rows:
        carrier = usage.transfer_id or 0
        # a record that was corrected while it waited for a whole fen is carried by a later charge, and counted in none
        reverses = carrier if carrier < (transfer.id or 0) and carrier in claimable else 0
        charged = replace(_charged(transfer, amounts), usage_id=usage.usage_id, reverses=reverses)
        found[usage.reservation_id].append(charged)
    return found


def corrections_under(session: Session, reservation_id: str) -> int:
    """How many records under a reservation were taken back, of whatever charge. Each may leave up to a fen more of what
    comes after it waiting for its charge."""
    query = select(func.count()).select_from(Correction).join(Usage, col(Usage.usage_id) == col(Correction.usage_id))
    return session.exec(query.where(Correction.state == "posted", Usage.reservation_id == reservation_id)).one()


def _claimable(session: Session, transfer_ids: Collection[int]) -> set[int]:
    """Which of these charges have a subsidy and stand in no line, of whatever days."""
    found: set[int] = set()
    ids = sorted(transfer_ids)
    for start in range(0, len(ids), _CHUNK):
        query = select(LedgerEntry.transfer_id).where(
            col(LedgerEntry.transfer_id).in_(ids[start : start + _CHUNK]),
            col(LedgerEntry.account).startswith(_USED, autoescape=True),
            col(LedgerEntry.transfer_id).not_in(select(ClaimedTransfer.transfer_id)),
        )
        found.update(session.exec(query))
    return found


def _charged(transfer: LedgerTransfer, amounts: Mapping[int, tuple[int, int]]) -> Charged:
    gross, subsidy = amounts.get(transfer.id or 0, (0, 0))
    return Charged(transfer.id or 0, transfer.kind, transfer.event_key, transfer.occurred_at_ms, gross, subsidy)


def _amounts(session: Session, transfer_ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Of each transfer what provider, fee and VAT got (its gross) and what came out of a voucher; negative where it was
    taken back."""
    gross: dict[int, int] = defaultdict(int)
    subsidy: dict[int, int] = defaultdict(int)
    for start in range(0, len(transfer_ids), _CHUNK):
        query = select(LedgerEntry.transfer_id, LedgerEntry.account, LedgerEntry.amount_fen)
        for transfer, account, fen in session.exec(
            query.where(col(LedgerEntry.transfer_id).in_(transfer_ids[start : start + _CHUNK]))
        ):
            if account.startswith("M.pay.provider[") or account in (accounts.FEE, accounts.VAT):
                gross[transfer] -= fen
            elif account.startswith(_USED):
                subsidy[transfer] += fen
    return {transfer: (gross[transfer], subsidy[transfer]) for transfer in {*gross, *subsidy}}
