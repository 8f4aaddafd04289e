"""Planted bugs: each is a mistake that somebody made once, or could. The simulator must catch every one of them.

A plant changes one world before it runs; what it replaces is a shipped function, or the glue that the shipped one has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec

from marketplace.clock import policy_date
from marketplace.ledger import accounts
from marketplace.ledger.posting import Entry
from marketplace.usage import rating
from marketplace.usage.rounding import Charge, Meter
from serving.journal_format import StartEntry, UsageEntry, frame_of
from serving.leases import HeldLease
from serving.metering import MICRO_PER_FEN, Lease
from tests.simulator import claiming, ingesting, losing, machine, market
from tests.simulator.ingesting import Ingesting
from tests.simulator.market import LeaseRow, Market, Reservation
from tests.simulator.network import Remote
from tests.simulator.world import World

Plant = Callable[[], Any]
PLANTS: dict[str, tuple[str, Plant]] = {}


def plant(told: str) -> Callable[[Plant], Plant]:
    def keep(make: Plant) -> Plant:
        PLANTS[make.__name__.replace("_", "-")] = (told, make)
        return make

    return keep


@plant("a dead node's leases are settled before its journal is sealed and ingested")
def release_before_seal() -> Any:
    def kill(self: World, name: str, *, power_cut: bool) -> None:
        die(self, name, power_cut=power_cut)
        node = self.dead[name]
        for lease in self.market.of_epoch.get((name, node.epoch), []):
            lease.state = "sealed" if lease.reservation_id else "settled"
        for reservation in self.market.reservations.values():
            if any((lease.node, lease.epoch) == (name, node.epoch) for lease in reservation.leases):
                self.market.return_remainders(reservation, self.now)

    die = World._die
    return patch.object(World, "_die", kill)


@plant("a lease whose time is out is taken back while its node still holds it")
def lease_timeout_releases() -> Any:
    def tick(self: World) -> bool:
        before(self)
        for lease in self.market.leases.values():
            if lease.state == "open" and lease.reservation_id and lease.expires_at_ms < self.now:
                lease.state = "sealed"
                self.market.return_remainders(self.market.reservations[lease.reservation_id], self.now)
        return True

    before = World.tick
    return patch.object(World, "tick", tick)


@plant("a reservation's counters are set to zero when a node starts again")
def reseed_at_zero() -> Any:
    def open_epoch(self: Market, node: str) -> int:
        for reservation in self.reservations.values():
            if reservation.state == "drawing":
                meter = reservation.meter
                reservation.meter = Meter(0, 0, meter.posted_gross_fen, meter.posted_subsidy_fen)
        return before(self, node)

    before = Market.open_epoch
    return patch.object(Market, "open_epoch", open_epoch)


@plant("a usage id that was charged is charged again when it is read again")
def non_idempotent_ingest() -> Any:
    def take(self: Ingesting, node: str, epoch: int, records: list[Any], event: str) -> None:
        known, self.known = self.known, {}
        before(self, node, epoch, records, event)
        self.known = known | self.known

    before = Ingesting.take
    return patch.object(Ingesting, "take", take)


@plant("the market dies between a batch's usage rows and its charge, and the rows stay")
def batch_half_done() -> Any:
    def charge(self: Ingesting, key: tuple[str, str], part: Any, event: str) -> None:
        if self.batches % 40 != 39:
            before(self, key, part, event)

    before = Ingesting._charge
    return patch.object(Ingesting, "_charge", charge)


@plant("each batch is rounded down on its own, and the rest of a fen is forgotten")
def rounding_per_batch() -> Any:
    def accumulate(meter: Meter, gross_micro: int, eligible_micro: int, num: int = 0, den: int = 1) -> Charge:
        gross = gross_micro // MICRO_PER_FEN
        subsidy = min(gross, eligible_micro * num // (den * MICRO_PER_FEN))
        after = Meter(meter.gross_micro + gross_micro, meter.eligible_micro + eligible_micro,
                      meter.posted_gross_fen + gross, meter.posted_subsidy_fen + subsidy)  # fmt: skip
        return Charge(gross, subsidy, after)

    return patch.object(ingesting, "accumulate", accumulate)


@plant("a subsidy is rounded up")
def subsidy_rounded_up() -> Any:
    def accumulate(meter: Meter, gross_micro: int, eligible_micro: int, num: int = 0, den: int = 1) -> Charge:
        gross_total, eligible = meter.gross_micro + gross_micro, meter.eligible_micro + eligible_micro
        gross = gross_total // MICRO_PER_FEN - meter.posted_gross_fen
        subsidy = max(0, min(-(-eligible * num // (den * MICRO_PER_FEN)) - meter.posted_subsidy_fen, gross))
        after = Meter(gross_total, eligible, meter.posted_gross_fen + gross, meter.posted_subsidy_fen + subsidy)
        return Charge(gross, subsidy, after)

    return patch.object(ingesting, "accumulate", accumulate)


@plant("what is used under each lease is rounded down when it is sealed, and the rest of it given back")
def rounding_at_release() -> Any:
    def returnable(leases: list[LeaseRow], num: int, den: int) -> int:
        sealed = [lease for lease in leases if lease.state in market.SEALED]
        used = sum(lease.eligible_micro * num // (den * MICRO_PER_FEN) for lease in sealed)
        return max(0, sum(lease.granted_fen - lease.returned_fen for lease in sealed) - used)

    return patch.object(market.closing, "decide_returnable", returnable)


@plant("a subsidy is posted without the gross fen that carries it")
def subsidy_without_gross() -> Any:
    def accumulate(meter: Meter, gross_micro: int, eligible_micro: int, num: int = 0, den: int = 1) -> Charge:
        gross_total, eligible = meter.gross_micro + gross_micro, meter.eligible_micro + eligible_micro
        gross = gross_total // MICRO_PER_FEN - meter.posted_gross_fen
        subsidy = max(0, eligible * num // (den * MICRO_PER_FEN) - meter.posted_subsidy_fen)
        after = Meter(gross_total, eligible, meter.posted_gross_fen + gross, meter.posted_subsidy_fen + subsidy)
        return Charge(gross, subsidy if gross else 0, after)

    return patch.object(ingesting, "accumulate", accumulate)


@plant("a sealed epoch's process still gets leases")
def no_fence() -> Any:
    return patch.object(Market, "check_epoch", lambda self, node, epoch: None)


@plant("the answer goes out before the record is written")
def ack_before_write() -> Any:
    def kill(self: machine.SimNode, power_cut: bool) -> None:
        if self.dice.random() < 0.5 and len(self.disk) > self.synced:  # the last record was answered and is not there
            ends = [write.end for write in self.oracle.of_epoch[self.name, self.epoch]]
            del self.disk[ends[-2] if len(ends) > 1 else 0 :]
        before(self, power_cut)

    before = machine.SimNode.kill
    return patch.object(machine.SimNode, "kill", kill)


@plant("a new lease carries what the node still held of the old one, which the old one keeps too")
def old_lease_carried_over() -> Any:
    def answer(self: Market, ask: Any, row: LeaseRow, same: bool, voucher_micro: int, credit_micro: int) -> Lease:
        lease = before(self, ask, row, same, voucher_micro, credit_micro)
        if row.kind == "subsidised" and not same:
            lease.remaining_micro = ask.held_voucher_micro + voucher_micro
        return lease

    before = Market._answer
    return patch.object(Market, "_answer", answer)


@plant("use-by is judged when usage is read, not when it happened")
def use_by_at_ingest() -> Any:
    def take(self: Ingesting, node: str, epoch: int, records: list[Any], event: str) -> None:
        late = [(seq, msgspec.structs.replace(record, occurred_at_ms=self.clock())) for seq, record in records]
        before(self, node, epoch, late, event)

    before = Ingesting.take
    return patch.object(Ingesting, "take", take)


@plant("a torn tail is skipped over, and what follows it is read")
def torn_tail_accepted() -> Any:
    def kill(self: machine.SimNode, power_cut: bool) -> None:
        before(self, power_cut)
        whole = ingesting.read(bytes(self.disk), 0, None)
        if len(self.disk) > whole.next_offset and whole.entries:  # the garbage is taken for the record before it
            last = whole.entries[-1]
            if isinstance(last, UsageEntry):
                again = UsageEntry(
                    last.seq + 1, msgspec.structs.replace(last.usage, usage_id=f"{last.usage.usage_id}?")
                )
                self.disk[whole.next_offset :] = frame_of(again)

    before = machine.SimNode.kill
    return patch.object(machine.SimNode, "kill", kill)


@plant("the event of a return names the lease alone, so that its second return is taken for the first")
def event_key_reuse() -> Any:
    def p6(reservation: str, lease: str, fen: int, returned_after_fen: int, at_ms: int) -> Any:
        return before(reservation, lease, fen, 0, at_ms)

    before = market.postings.p6_sealed
    return patch.object(market.postings, "p6_sealed", p6)


@plant("a voucher lapses and its enterprise's cap is not released")
def cap_not_released() -> Any:
    def lapse(self: Market, voucher: Any, at_ms: int) -> None:
        caps = {code: list(self.books.caps[code]) for code in (voucher.cap_code,)}
        before(self, voucher, at_ms)
        self.books.caps.update(caps)

    before = Market.lapse
    return patch.object(Market, "lapse", lapse)


@plant("a contract's end gives back what is leased as well as what is idle")
def end_takes_leased() -> Any:
    def release(self: Market, reservation: Reservation, at_ms: int) -> None:
        for lease in reservation.leases:
            fen = self.books.balance(accounts.leased(lease.id))
            if fen:
                lease.returned_fen += fen
                move = market.postings.p6_sealed(reservation.id, lease.id, fen, lease.returned_fen, at_ms)
                self.books.post_all([move])
        before(self, reservation, at_ms)

    before = Market.release_idle
    return patch.object(Market, "release_idle", release)


@plant("a revocation takes back what nodes hold in leases, as if they had not used it")
def revoke_takes_leased() -> Any:
    def end_voucher(self: Market, voucher: Any, state: str, at_ms: int) -> None:
        for lease in [row for row in self.leases.values() if state == "revoked" and row.state in market.OPEN]:
            reservation = self.reservations.get(lease.reservation_id)
            fen = self.books.balance(accounts.leased(lease.id))
            if fen and reservation is not None and reservation.voucher is voucher:
                lease.returned_fen += fen
                move = market.postings.p6_sealed(reservation.id, lease.id, fen, lease.returned_fen, at_ms)
                self.books.post_all([move])
        before(self, voucher, state, at_ms)

    before = Market.end_voucher
    return patch.object(Market, "end_voucher", end_voucher)


@plant("a stream that never ended is charged its estimate")
def estimate_charged() -> Any:
    def take(self: Any, entry: Any) -> None:
        if isinstance(entry, StartEntry):
            self._running[entry.usage.usage_id] = (entry.seq, entry.usage)
        else:
            before(self, entry)

    before = ingesting.RunningStreams.take
    return patch.object(ingesting.RunningStreams, "take", take)


@plant("a stream that never ended is forgotten")
def stream_forgotten() -> Any:
    return patch.object(ingesting.RunningStreams, "unresolved", lambda self: [])


@plant("chunks of a journal are appended wherever they began")
def chunk_out_of_order() -> Any:
    def deliver(self: Remote, dice: Any, note: Any) -> bool:
        if self.flying:
            epoch, _, content, _ = self.flying.pop(dice.randrange(len(self.flying)))
            self.copies.setdefault(epoch, bytearray()).extend(content)
            return True
        return False

    def complete(self: Remote, node: machine.SimNode) -> None:
        copy = self.copies.setdefault(node.epoch, bytearray())
        copy.extend(node.disk[len(copy) :])

    return patch.multiple(Remote, deliver=deliver, complete=complete)


@plant("the node gives a failed run's money back twice")
def double_give_back() -> Any:
    def give_back(self: HeldLease, amount: int, line: Any) -> None:
        before(self, amount, line)
        before(self, amount, line)

    before = HeldLease.give_back
    return patch.object(HeldLease, "give_back", give_back)


@plant("a retry gets a usage id of its own")
def retry_billed_twice() -> Any:
    def call(self: machine.SimNode, usage_id: str, key: str, *rest: Any) -> bool:
        return before(self, f"{usage_id}x{self.seq}" if key in self.oracle.keys[self.name] else usage_id, key, *rest)

    before = machine.SimNode.call
    return patch.object(machine.SimNode, "call", call)


@plant("a lapsed filing is not looked at: the node goes on under the voucher")
def filing_not_judged() -> Any:
    def line_for(self: HeldLease, name: str, at_ms: int) -> Any:
        return next((line for line in self.lease.prices if line.model == name), None)

    def expiry(self: Market, contract: Any, at_ms: int, ends: list[int | None]) -> int:
        return before(self, contract, at_ms, ends[:1])

    before = Market._expiry
    stack = ExitStack()
    stack.enter_context(patch.object(HeldLease, "line_for", line_for))
    stack.enter_context(patch.object(Market, "_expiry", expiry))
    return stack


@plant("the year's cap is counted under the year in which it is released, not that of the issue")
def cap_of_the_wrong_year() -> Any:
    def lapse(self: Market, voucher: Any, at_ms: int) -> None:
        code = voucher.cap_code
        if self.cap_period == "calendar_year":
            year = str(policy_date(at_ms).year)
            voucher.cap_code = accounts.cap_enterprise(market.PROGRAMME, voucher.organisation, year)
            self.books.cap(voucher.cap_code, 200_000)
        before(self, voucher, at_ms)
        voucher.cap_code = code

    before = Market.lapse
    return patch.object(Market, "lapse", lapse)


@plant("a corrected fen goes back to the reservation, while the node's lease still counts on it")
def correction_to_reservation() -> Any:
    def p13(**facts: Any) -> Any:
        posting = before(**facts)
        target = accounts.leased(facts.get("lease", ""))
        moved = [(accounts.reserved(facts["reservation"]) if e.account == target else e.account, e.amount_fen)
                 for e in posting.entries]  # fmt: skip
        return replace(posting, entries=tuple(Entry(*each) for each in moved))

    before = claiming.claim_postings.p13_corrected
    return patch.object(claiming.claim_postings, "p13_corrected", p13)


@plant("a written-off epoch is not fenced: when its journal comes, it is charged as if nothing had been given back")
def write_off_without_fence() -> Any:
    def take_late(self: Ingesting, node: str, epoch: int, data: bytes, at_ms: int) -> None:
        self.market.late.pop((node, epoch))
        self.close(node, epoch, data, at_ms)

    return patch.object(Ingesting, "take_late", take_late)


@plant("a late journal gets again all that its leases were ever granted")
def late_journal_restored_whole() -> Any:
    def restore(self: Market, node: str, epoch: int, at_ms: int) -> None:
        before(self, node, epoch, at_ms)
        for lease_id, facts in self.late[node, epoch].items():
            facts[2] = self.leases[lease_id].granted_fen

    before = Market.restore
    return patch.object(Market, "restore", restore)


@plant("a node's clock is believed, however far it is off")
def clock_believed() -> Any:
    believed = ExitStack()
    for module in (losing, machine):
        believed.enter_context(patch.object(module, "decide_skew", lambda clock_ms, at_ms, limit_ms: 0))
    believed.enter_context(patch.object(rating, "CLOCK_MS", 1 << 50))
    return believed


@plant("a claim takes a charge whole that was corrected since: corrections are left for the days they were posted on")
def correction_left_behind() -> Any:
    before = claiming.decide_units
    return patch.object(claiming, "decide_units", lambda charges, corrections: before(charges, ()))


@plant("a claim leaves out the charges that no fen of the voucher went into")
def gross_only_left_out() -> Any:
    return patch.object(Ingesting, "_is_claimable", staticmethod(lambda charge, carried: charge.subsidy_fen > 0))


@plant("a charge is claimed although its correction stands in another line")
def claimed_without_its_correction() -> Any:
    return patch.object(claiming.Claims, "_stripped", lambda self, reservation: set())
