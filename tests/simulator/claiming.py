"""Claims in memory (P9–P14): batches of whole charges, returned and rejected lines, payment, corrections, clawbacks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice

from marketplace.claims.charged import Charged, decide_units
from marketplace.claims.states import Reversal, decide_reversal
from marketplace.ledger import accounts, claim_postings, postings
from tests.simulator.ingesting import SELF_PAY_TERMS, Ingesting, Known
from tests.simulator.market import ENDED, HOUR_MS, PROGRAMME, PROVIDER, Market, Reservation


@dataclass(slots=True)
class Line:
    id: str
    reservation: Reservation
    charges: list[Charged]
    subsidy_fen: int
    state: str = "in_batch"
    clawed_fen: int = 0


@dataclass(slots=True)
class Batch:
    id: str
    lines: list[Line] = field(default_factory=list)
    state: str = "frozen"


class Claims:
    def __init__(self, market: Market, ingesting: Ingesting) -> None:
        self.market, self.ingesting = market, ingesting
        self.batches: list[Batch] = []
        self._lines: dict[str, list[Line]] = {}
        self.clawbacks = self.corrections = 0

    def standing(self, reservation: str) -> int:
        """Fen of a reservation that are in a batch or paid."""
        return sum(
            line.subsidy_fen for line in self._lines.get(reservation, ()) if line.state in ("in_batch", "accepted")
        )

    def rejected(self, reservation: str) -> int:
        """Fen that nobody will pay: they stay counted against the contract."""
        return sum(line.subsidy_fen for line in self._lines.get(reservation, ()) if line.state == "rejected")

    def claimed_whole(self, reservation: str) -> set[int]:
        """Charges that stand in a batch while a correction of theirs does not, or stands in another line."""
        lines = [line for line in self._lines.get(reservation, ()) if line.state in ("in_batch", "accepted")]
        places = {each.transfer_id: line.id for line in lines for each in line.charges if each.kind == "P5"}
        whole = places.keys() & {charge.reverses for charge in self.ingesting.unclaimed.get(reservation, ())}
        taken = [(each.reverses, line.id) for line in lines for each in line.charges if each.kind == "P13"]
        return whole | {number for number, line in taken if places.get(number, line) != line}

    def placed(self) -> set[str]:
        """Events of all charges that stand in a line or can still come into one."""
        found = {each.event_key for part in self.ingesting.unclaimed.values() for each in part}
        lines = [line for part in self._lines.values() for line in part if line.state != "returned"]
        return found | {each.event_key for line in lines for each in line.charges}

    def told(self) -> dict[str, int]:
        return {
            "paid batches": sum(batch.state == "paid" for batch in self.batches),
            "clawbacks": self.clawbacks, "corrections": self.corrections,
        }  # fmt: skip

    def freeze(self, at_ms: int) -> bool:
        """P9: what is unclaimed of the days up to now, or to some days ago, with its corrections: a line for each
        reservation with something to claim; False where there is none. How long ago the clock says, no dice."""
        batch, subsidy = Batch(self.market.mint("clm")), {}
        until = at_ms - (0, 0, 1, 2, 4)[at_ms % 5] * 24 * HOUR_MS
        for reservation_id, found in list(self.ingesting.unclaimed.items()):
            charges = self._claimable(reservation_id, found, until)
            fen = sum(charge.subsidy_fen for charge in charges)
            if fen <= 0 or fen > self.market.books.balance(accounts.used(reservation_id)):
                continue  # NOTHING_TO_CLAIM, CORRECTION_OUTSIDE
            taken = {charge.event_key for charge in charges}
            self.ingesting.unclaimed[reservation_id] = [each for each in found if each.event_key not in taken]
            line = Line(self.market.mint("cln"), self.market.reservations[reservation_id], charges, fen)
            batch.lines.append(line)
            self._lines.setdefault(reservation_id, []).append(line)
            subsidy[reservation_id] = fen
        if subsidy:
            self.batches.append(batch)
            self.market.books.post_all([claim_postings.p9_frozen(batch.id, subsidy, at_ms)])
        return bool(subsidy)

    def _claimable(self, reservation: str, found: list[Charged], until_ms: int) -> list[Charged]:
        """As `charged.unclaimed`: a correction waits for its charge where that is of other days and has a subsidy."""
        stripped = self._stripped(reservation)
        charges = sorted((each for each in found if each.kind == "P5"), key=lambda each: each.transfer_id)
        mine = [each for each in charges if each.occurred_at_ms <= until_ms]
        mine = [each for each in mine if each.subsidy_fen or each.transfer_id not in stripped]
        numbers = {each.transfer_id for each in charges if each.subsidy_fen} | {each.transfer_id for each in mine}
        corrections = [
            each if each.reverses in numbers else replace(each, reverses=0) for each in found if each.kind == "P13"
        ]
        units = decide_units(mine, corrections)
        by_event = {each.event_key: each for each in found}  # a line that comes back still says what they reverse
        return [by_event[charge.event_key] for unit in units for charge in unit.charges]

    def _stripped(self, reservation: str) -> set[int]:
        """Charges of which a correction stands in a line."""
        lines = [line for line in self._lines.get(reservation, ()) if line.state != "returned"]
        return {each.reverses for line in lines for each in line.charges if each.kind == "P13"}

    def decide(self, dice: random.Random, at_ms: int) -> bool:
        """Something that may be done with a batch: return or reject a line, pay the batch, claw back what was paid."""
        batch = dice.choice(self.batches) if self.batches else None
        if batch is None or batch.state == "returned":
            return False
        open_lines = [line for line in batch.lines if line.state == "in_batch"]
        if batch.state == "paid":
            return self._claw_back(batch, dice.choice(batch.lines), dice, at_ms)
        elif not open_lines:
            batch.state = "returned"
        elif dice.random() < 0.4:
            self._pay(batch, open_lines, at_ms)
        elif dice.random() < 0.5:
            self._return(batch, dice.choice(open_lines), at_ms)
        else:
            self._reject(batch, dice.choice(open_lines), at_ms)
        return True

    def _pay(self, batch: Batch, lines: list[Line], at_ms: int) -> None:
        fen = sum(line.subsidy_fen for line in lines)
        payee = "enterprise" if self.market.mode == "reimburse" else "provider"  # the real stores play both
        self.market.books.post_all([claim_postings.p10_paid(batch.id, PROGRAMME, {PROVIDER: fen}, payee, at_ms)])
        for line in lines:
            line.state = "accepted"
        batch.state = "paid"

    def _return(self, batch: Batch, line: Line, at_ms: int) -> None:
        row = line.reservation
        self.market.books.post_all([claim_postings.p11_returned(batch.id, line.id, row.id, line.subsidy_fen, at_ms)])
        line.state = "returned"
        self.ingesting.unclaimed[row.id].extend(line.charges)

    def _reject(self, batch: Batch, line: Line, at_ms: int) -> None:
        """The charges stay with the rejected line: nobody claims them again."""
        row, market = line.reservation, self.market
        owner = row.voucher.organisation
        move = claim_postings.p12_rejected(batch.id, line.id, PROGRAMME, owner, line.subsidy_fen, market.mode, at_ms)
        market.books.post_all([move])
        line.state = "rejected"
        row.voucher.returned_fen += line.subsidy_fen
        for code in (row.voucher.cap_code, market.pool_cap):
            market.books.take_back(code, line.subsidy_fen)
            market.books.release(code, line.subsidy_fen)

    def _claw_back(self, batch: Batch, line: Line, dice: random.Random, at_ms: int) -> bool:
        room = line.subsidy_fen - line.clawed_fen
        if line.state != "accepted" or not room:
            return False
        fen, clawback, owner = dice.randint(1, room), self.market.mint("clw"), line.reservation.voucher.organisation
        line.clawed_fen += fen
        books = self.market.books
        books.post_all([claim_postings.p14_clawed_back(clawback, batch.id, PROGRAMME, owner, fen, at_ms)])
        if dice.random() < 0.5:
            books.post_all([claim_postings.p14_ended(clawback, PROGRAMME, owner, fen, at_ms)])
        self.clawbacks += 1
        return True

    def correct(self, dice: random.Random, at_ms: int) -> bool:
        """P13 for one charged record that stands in no batch; False where it may not be corrected."""
        recent = list(islice(reversed(self.ingesting.known), 200))
        known = self.ingesting.known[dice.choice(recent)] if recent else None
        if known is None or known.corrected or not known.amount_micro:
            return False
        corrected = self._correct_subsidised(known, at_ms) if known.reservation else self._correct_own(known, at_ms)
        self.corrections += corrected
        return corrected

    def _correct_own(self, known: Known, at_ms: int) -> bool:
        contract = self.market.contracts[known.contract]
        before = contract.own
        taken = decide_reversal(before, known.amount_micro, 0)
        known.corrected, contract.own = True, taken.meter
        if taken.gross_fen:
            move = claim_postings.p13_corrected(
                correction=self.market.mint("cor"), enterprise=contract.organisation, provider=PROVIDER,
                gross_fen=taken.gross_fen, subsidy_fen=0, posted_gross_fen=before.posted_gross_fen,
                terms=SELF_PAY_TERMS, at_ms=at_ms,
            )  # fmt: skip
            self.market.books.post_all([move])
        return True

    def _correct_subsidised(self, known: Known, at_ms: int) -> bool:
        market = self.market
        row, before = market.reservations[known.reservation], market.reservations[known.reservation].meter
        claimed = {
            c.event_key for line in self._lines.get(row.id, ()) if line.state != "returned" for c in line.charges
        }
        eligible = known.amount_micro if known.eligible else 0
        taken = decide_reversal(before, known.amount_micro, eligible, row.ratio_num, row.ratio_den)
        if known.event in claimed or taken.subsidy_fen > market.books.balance(accounts.used(row.id)):
            return (
                False  # CORRECTION_CLAIMED, or CORRECTION_CARRIED where a later charge carried its subsidy into a batch
            )
        known.corrected, row.meter = True, taken.meter
        market.leases[known.lease].eligible_micro -= eligible
        for code in market.caps_of(row) if taken.subsidy_fen else ():
            market.books.take_back(code, taken.subsidy_fen)
        if taken.gross_fen or taken.subsidy_fen:
            move = claim_postings.p13_corrected(
                correction=market.mint("cor"), enterprise=row.voucher.organisation, provider=PROVIDER,
                gross_fen=taken.gross_fen, subsidy_fen=taken.subsidy_fen, posted_gross_fen=before.posted_gross_fen,
                terms=market.terms, at_ms=at_ms, programme=PROGRAMME, reservation=row.id, lease=known.lease,
                mode=market.mode,
            )  # fmt: skip
            market.books.post_all([move])
            self._keep(known, row, move.event_key, taken, at_ms)
        self._pass_on(row, at_ms)
        return True

    def _keep(self, known: Known, row: Reservation, event: str, taken: Reversal, at_ms: int) -> None:
        reverses = self.ingesting.charges.get(known.event, 0)
        amounts = -taken.gross_fen, -taken.subsidy_fen
        self.ingesting.unclaimed[row.id].append(Charged(0, "P13", event, at_ms, *amounts, "corrected", reverses))

    def _pass_on(self, row: Reservation, at_ms: int) -> None:
        """What came back to a sealed lease goes on as far as it may; from a reservation that is over, to its voucher,
        or to the pool."""
        market, voucher = self.market, row.voucher
        market.return_remainders(row, at_ms)
        fen = market.books.balance(accounts.reserved(row.id))
        if not fen or row.state in ("held", "drawing"):
            return
        if voucher.state not in ENDED:
            market.release_idle(row, at_ms)
            return
        voucher.returned_fen += fen
        row.released_fen += fen
        move = postings.p8_lapsed(PROGRAMME, voucher.id, 0, {row.id: fen}, voucher.returned_fen, at_ms)
        market.books.post_all([move])
        for code in market.caps_of(row):
            market.books.release(code, fen)
