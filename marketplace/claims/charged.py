"""What was charged and stands in no line yet: each charge (P5) with the corrections (P13) that take back of it.

A charge belongs to the day of the last use in it, among the records whose ingest made it whole: its `occurred_at_ms` is
that record's. Older use that arrived with it or had waited for it goes along, of whatever day. So does younger use that
had waited, being less than a fen, from another node's journal that was ingested before. `integrity.verify_times` holds
packs to this. A correction has no day of its own here: it goes with the charge of the record that it takes back,
whenever it was posted, so that no batch claims whole what was corrected in part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from sqlmodel import Session, col, select

from marketplace.claims.tables import ClaimedTransfer, Correction
from marketplace.clock import end_of_day_ms, start_of_day_ms
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import Reservation, Voucher

_USED = accounts.used("")[:-1]  # what the accounts of use begin with
_CHUNK = 1_000  # bound parameters of one statement


@dataclass(frozen=True, slots=True)
class Charged:
    """One transfer's part under one reservation. A correction's amounts are negative.

    Of a correction, `usage_id` is the record that it takes back, `reverses` the charge that this is carried by; 0 where
    nobody can claim that (any more): it stands in a line, has no subsidy, or came after the correction.
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
    corrections = _corrections(session, charges)
    return {code: decide_units(found, corrections.get(code, ())) for code, found in charges.items()}


def _charges(session: Session, programme_id: str, from_day: date, to_day: date) -> dict[str, list[Charged]]:
    """The unclaimed charges with a subsidy, by reservation, each in the order in which they were posted."""
    of_programme = select(Reservation.id).join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
    reservations = set(session.exec(of_programme.where(Voucher.programme_id == programme_id)))
    query = (
        select(LedgerTransfer, LedgerEntry.account)
        .join(LedgerEntry, col(LedgerEntry.transfer_id) == col(LedgerTransfer.id))
        .where(
            LedgerTransfer.kind == "P5",
            LedgerTransfer.occurred_at_ms >= start_of_day_ms(from_day),
            LedgerTransfer.occurred_at_ms <= end_of_day_ms(to_day),
            col(LedgerEntry.account).startswith(_USED, autoescape=True),
            col(LedgerTransfer.id).not_in(select(ClaimedTransfer.transfer_id)),
        )
        .order_by(col(LedgerTransfer.id))
    )
    rows = [(transfer, account[len(_USED) : -1]) for transfer, account in session.exec(query)]
    rows = [row for row in rows if row[1] in reservations]
    amounts = _amounts(session, [transfer.id or 0 for transfer, _ in rows])
    found: dict[str, list[Charged]] = defaultdict(list)
    for transfer, reservation in rows:
        found[reservation].append(_charged(transfer, amounts))
    return dict(found)


def _corrections(session: Session, reservations: Collection[str]) -> dict[str, list[Charged]]:
    """The corrections under these reservations that no line has, whenever they were posted."""
    query = (
        select(LedgerTransfer, Usage)
        .join(Correction, col(Correction.transfer_id) == col(LedgerTransfer.id))
        .join(Usage, col(Usage.usage_id) == col(Correction.usage_id))
        .where(Usage.reservation_id != "", col(LedgerTransfer.id).not_in(select(ClaimedTransfer.transfer_id)))
        .order_by(col(LedgerTransfer.id))
    )
    rows = [row for row in session.exec(query) if row[1].reservation_id in reservations]
    amounts = _amounts(session, [transfer.id or 0 for transfer, _ in rows])
    claimable = _claimable(session, {usage.transfer_id for _, usage in rows if usage.transfer_id})
    found: dict[str, list[Charged]] = defaultdict(list)
    for transfer, usage in rows:
        carrier = usage.transfer_id or 0
        # a record that was corrected while it waited for a whole fen is carried by a later charge, and counted in none
        reverses = carrier if carrier < (transfer.id or 0) and carrier in claimable else 0
        charged = replace(_charged(transfer, amounts), usage_id=usage.usage_id, reverses=reverses)
        found[usage.reservation_id].append(charged)
    return found


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
