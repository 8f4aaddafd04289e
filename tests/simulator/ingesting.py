"""Ingest in memory: the shipped reader, rating, rounding and draws over journals that are byte strings.

As `marketplace.usage`: an offset per epoch advances with what is charged; a usage id is charged once, for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from marketplace.claims.charged import Charged
from marketplace.ledger import accounts, postings
from marketplace.usage.ingest import finished
from marketplace.usage.rating import Late, LeaseBasis, rate
from marketplace.usage.recovery import RunningStreams
from marketplace.usage.rounding import Charge, Meter, accumulate, decide_draws
from serving.journal_format import JournalHeader, Segment, take_frames
from serving.metering import MICRO_PER_FEN, UsageRecord
from tests.simulator.books import Violation
from tests.simulator.market import HOUR_MS, PROGRAMME, PROVIDER, Market, Reservation, month_of_hour

HEADER = JournalHeader("algomart-journal", 1, "", 0, 1)
SELF_PAY_TERMS = postings.Terms()


@dataclass(slots=True)
class Known:
    """A usage row. `event`: the charge that carries it, "" while it waits for a whole fen."""

    lease: str
    amount_micro: int
    eligible: bool
    reservation: str
    contract: str
    month: str
    event: str = ""
    corrected: bool = False


@dataclass(slots=True)
class Place:
    """How far one epoch's journal is in the ledger."""

    offset: int = 0
    last_seq: int = 0


@dataclass(slots=True)
class Part:
    gross_micro: int = 0
    eligible_micro: int = 0
    last_ms: int = 0
    rows: list[Known] = field(default_factory=list)


def read(data: bytes | bytearray, offset: int, limit: int | None, end: int | None = None) -> Segment:
    """Whole frames of a journal without its header, from `offset` up to byte `end`."""
    segment = Segment(HEADER, next_offset=offset)
    take_frames(bytes(data[offset:end]), segment, 1 if offset == 0 else None, limit)
    return segment


class Ingesting:
    def __init__(self, market: Market, clock: Callable[[], int]) -> None:
        """`clock`: the market's; nothing that is charged may depend on it."""
        self.market, self.clock = market, clock
        self.known: dict[str, Known] = {}
        self.quarantined: set[str] = set()  # nothing covered them any more: charged to nobody
        self.waiting: dict[tuple[str, str], list[Known]] = defaultdict(list)
        self.unclaimed: dict[str, list[Charged]] = defaultdict(
            list
        )  # reservation → charges of use that the voucher pays a share of, corrections
        self.charges: dict[str, int] = {}  # event of a charge → its number
        self.places: dict[tuple[str, int], Place] = defaultdict(Place)
        self.batches = self.unresolved = 0

    def run_pass(self, node: str, epoch: int, data: bytes | bytearray, limit: int, end: int | None = None) -> int:
        """One batch of an open journal, of which `end` bytes are seen; answers how many entries were read."""
        place = self.places[node, epoch]
        if place.offset >= len(data):
            return 0
        segment = read(data, place.offset, limit, end)
        if segment.entries:
            records = finished(segment.entries, place.last_seq)
            place.last_seq, place.offset = segment.entries[-1].seq, segment.next_offset
            self.take(node, epoch, records, f"{node}:{epoch}:{place.last_seq}")
        return len(segment.entries)

    def close(self, node: str, epoch: int, data: bytes, at_ms: int) -> None:
        """Recovery of a dead epoch: to the journal's last whole frame, then what never ended, then P6."""
        whole = read(data, 0, None)
        if whole.entries and self.places[node, epoch].last_seq < whole.entries[-1].seq:
            while self.run_pass(node, epoch, data, 1_000):
                pass
        running = RunningStreams()
        for entry in whole.entries:
            running.take(entry)
        left = running.unresolved()
        self.unresolved += len(left)
        self.take(node, epoch, left, f"{node}:{epoch}:unresolved")
        self.market.seal(node, epoch, at_ms)

    def take_late(self, node: str, epoch: int, data: bytes, at_ms: int) -> None:
        """The whole journal of an epoch that was written off."""
        self.market.restore(node, epoch, at_ms)
        self.close(node, epoch, data, at_ms)

    def take(self, node: str, epoch: int, records: list[tuple[int, UsageRecord]], event: str) -> None:
        market, bases = self.market, {}
        skewed = (node, epoch) in market.skewed
        parts: dict[tuple[str, str], Part] = defaultdict(Part)
        for _, record in records:
            if record.usage_id in self.known or record.usage_id in self.quarantined:
                continue
            basis = bases.get(record.lease_id)
            if basis is None:
                row = market.leases[record.lease_id]
                reservation = market.reservations.get(row.reservation_id)
                known_late = market.late.get((node, epoch), {}).get(row.id)
                late = None if known_late is None else Late(known_late[0], known_late[2], row.credit_micro)
                voucher = reservation.voucher if reservation else None
                basis = LeaseBasis.of(row, reservation, voucher, late, skewed=skewed)  # type: ignore[arg-type]
                bases[record.lease_id] = basis
            before = basis.own_micro
            rated = rate(record, basis, node, epoch)
            if rated.reason in ("LEASE_WRITTEN_OFF", "CLOCK_SKEWED"):
                self.quarantined.add(record.usage_id)
                continue
            if rated.reason:
                raise Violation(f"{record.usage_id} is quarantined: {rated.reason}")
            month = month_of_hour(record.occurred_at_ms // HOUR_MS)
            known = Known(record.lease_id, record.amount_micro, rated.eligible, *basis.contract, month)
            self.known[record.usage_id] = known
            part = parts[basis.contract]
            part.gross_micro += record.amount_micro
            part.eligible_micro += record.amount_micro if rated.eligible else 0
            part.last_ms = max(part.last_ms, record.occurred_at_ms)
            part.rows.append(known)
            months = market.contracts[basis.contract[1]].months
            months[month] = months.get(month, 0) + basis.own_micro - before
        for key, part in sorted(parts.items()):
            self._charge(key, part, event)
        for lease, basis in bases.items():
            market.leases[lease].eligible_micro = basis.eligible_micro
            market.leases[lease].own_micro = basis.own_micro
        self.batches += 1

    def _charge(self, key: tuple[str, str], part: Part, event: str) -> None:
        self.waiting[key].extend(part.rows)
        market = self.market
        contract, reservation = market.contracts[key[1]], market.reservations.get(key[0])
        before = contract.own if reservation is None else reservation.meter
        ratio = (0, 1) if reservation is None else (reservation.ratio_num, reservation.ratio_den)
        charge = accumulate(before, part.gross_micro, part.eligible_micro, *ratio)
        facts: dict[str, Any] = {
            "gross_fen": charge.gross_fen, "posted_gross_fen": before.posted_gross_fen, "occurred_at_ms": part.last_ms,
            "enterprise": contract.organisation, "provider": PROVIDER,
        }  # fmt: skip
        if reservation is None:
            contract.own = charge.meter
            facts |= {"event": f"{contract.id}:{event}", "terms": SELF_PAY_TERMS}
        else:
            reservation.meter = charge.meter
            draws = decide_draws(self._drawable(reservation), charge.subsidy_fen) if charge.subsidy_fen else {}
            facts |= {
                "event": f"{reservation.id}:{event}", "terms": market.terms, "programme": PROGRAMME,
                "reservation": reservation.id, "mode": market.mode, "draws": draws,
            }  # fmt: skip
        if not charge.gross_fen:
            return
        posting = postings.p5_used(**facts)
        market.books.post_all([posting])
        if reservation is not None:
            self._check_ratio(reservation)
            for code in market.caps_of(reservation) if charge.subsidy_fen else ():
                market.books.use(code, charge.subsidy_fen)
            number = self.charges[posting.event_key] = len(self.charges) + 1
            amounts = charge.gross_fen, charge.subsidy_fen
            if self._is_claimable(charge, self.waiting[key]):
                charged = Charged(number, "P5", posting.event_key, part.last_ms, *amounts)
                self.unclaimed[reservation.id].append(charged)
        for row in self.waiting.pop(key):
            row.event = posting.event_key

    @staticmethod
    def _is_claimable(charge: Charge, carried: list[Known]) -> bool:
        """One that no fen of the voucher went into too: its share came with another, or still waits."""
        return charge.subsidy_fen > 0 or any(row.eligible for row in carried)

    def _drawable(self, reservation: Reservation) -> list[tuple[str, int]]:
        leases = [lease for lease in reservation.leases if lease.state != "settled"]
        leases.sort(key=lambda lease: (lease.state != "sealed", lease.id))
        return [(lease.id, self.market.books.balance(accounts.leased(lease.id))) for lease in leases]

    def _check_ratio(self, reservation: Reservation) -> None:
        """The ratio holds at every instant."""
        meter: Meter = reservation.meter
        if meter.posted_subsidy_fen * reservation.ratio_den > meter.posted_gross_fen * reservation.ratio_num:
            raise Violation(f"{reservation.id}: the subsidy passes its ratio: {meter}")
        if meter.posted_gross_fen * MICRO_PER_FEN > meter.gross_micro:
            raise Violation(f"{reservation.id}: more is posted than was used: {meter}")
