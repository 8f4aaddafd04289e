"""What must be true, kept apart from the code under test: who wrote which record, and what of it the disk still has."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from marketplace.clock import end_of_day_ms
from marketplace.ledger import accounts
from serving.leases import HeldLease
from serving.metering import MICRO_PER_FEN, Lease, PriceLine, UsageRecord
from serving.remote.clock import LIMIT_MS
from tests.simulator.books import Violation
from tests.simulator.market import ENDED, OPEN, PROGRAMME, Market

if TYPE_CHECKING:
    from tests.simulator.claiming import Claims
    from tests.simulator.ingesting import Ingesting
    from tests.simulator.machine import SimNode

DENOMINATORS = 60  # a multiple of every ratio's denominator: own shares are kept exactly


@dataclass(slots=True)
class Write:
    """One record on a node's disk, up to byte `end`. `final`: a finished run; else a stream's counter so far."""

    node: tuple[str, int]
    end: int
    amount_micro: int
    final: bool
    lost: bool = False


@dataclass(slots=True)
class Use:
    """One usage id: every record under it, in the order of writing."""

    contract: str
    month: str
    ratio: tuple[int, int]
    true_ms: int  # when it really happened, by the market's clock
    writes: list[Write] = field(default_factory=list)

    def allowed(self) -> tuple[set[int], bool]:
        """The amounts that may be charged, and whether it must be charged: the first finished record that survives,
        else a stream's last counter. What a power cut took may have been read before."""
        allowed, finals = set(), [w for w in self.writes if w.final]
        for write in finals:
            allowed.add(write.amount_micro)
            if not write.lost:
                return allowed, True
        counters = [w for w in self.writes if not w.final and not w.lost]
        if counters:
            allowed.add(counters[-1].amount_micro)
        return allowed, bool(counters)


class Oracle:
    def __init__(self) -> None:
        self.uses: dict[str, Use] = {}
        self.of_epoch: dict[tuple[str, int], list[Write]] = defaultdict(list)
        self.keys: dict[str, dict[str, tuple[str, Write]]] = defaultdict(dict)  # node → key → usage id
        self.acknowledged: set[str] = set()
        self.written_off: set[tuple[str, int]] = set()
        self.wild: set[tuple[str, int]] = set()  # epochs in which the node's clock was off by more than is allowed
        self.own_scaled: dict[tuple[str, str], int] = defaultdict(int)  # (contract, month) → upper bound of own cost

    def granted(self, market: Market, lease: Lease) -> None:
        """Invariant 7 at the moment of the grant: only a node's open epoch is ever given anything."""
        if market.epochs.get(lease.node) != (lease.epoch, True):
            raise Violation(f"lease {lease.lease_id} went to the sealed epoch {lease.epoch} of {lease.node}")

    def finished(
        self, node: SimNode, record: UsageRecord, held: HeldLease, line: PriceLine, key: str, month: str, true_ms: int
    ) -> None:
        standing = self.keys[node.name].get(key)
        if standing is not None and standing[0] != record.usage_id:
            raise Violation(f"the key {key} of {standing[0]} was billed again as {record.usage_id}")
        write = self._write(node, record, held, line, month, true_ms, final=True)
        self.acknowledged.add(record.usage_id)
        self.keys[node.name][key] = (record.usage_id, write)

    def began(
        self, node: SimNode, record: UsageRecord, held: HeldLease, line: PriceLine, month: str, true_ms: int
    ) -> None:
        self._write(node, record, held, line, month, true_ms, final=False).amount_micro = 0

    def counted(self, node: SimNode, record: UsageRecord, *, final: bool) -> None:
        use = self.uses[record.usage_id]
        write = Write((node.name, node.epoch), len(node.disk), record.amount_micro, final)
        use.writes.append(write)
        self.of_epoch[node.name, node.epoch].append(write)
        if final:
            self.acknowledged.add(record.usage_id)

    def _write(
        self, node: SimNode, record: UsageRecord, held: HeldLease, line: PriceLine, month: str, true_ms: int,
        *, final: bool,
    ) -> Write:  # fmt: skip
        ratio = (line.ratio_num, line.ratio_den) if held.kind == "subsidised" else (0, 1)
        if held.kind == "subsidised":
            self._check_instant(node.market, record, held.lease.reservation, line.model)
        use = self.uses.setdefault(record.usage_id, Use(held.lease.subscription, month, ratio, true_ms))
        write = Write((node.name, node.epoch), len(node.disk), record.amount_micro, final)
        use.writes.append(write)
        self.of_epoch[node.name, node.epoch].append(write)
        return write

    @staticmethod
    def _check_instant(market: Market, record: UsageRecord, reservation: str, model: str) -> None:
        """Invariants 5 and 6 at the moment of use, by the node's clock: voucher and filing are valid."""
        voucher = market.reservations[reservation].voucher
        last = min(voucher.last_use_ms, market.filing_ends.get(model, voucher.last_use_ms))
        if record.occurred_at_ms > last:
            late = record.occurred_at_ms - last
            raise Violation(f"{record.usage_id} was served {late} ms after its voucher or filing had ended")

    def lost(self, node: SimNode, kept: int) -> None:
        """A power cut left `kept` bytes."""
        for write in self.of_epoch[node.name, node.epoch]:
            write.lost = write.lost or write.end > kept
        keys = self.keys[node.name]
        for key in [key for key, (_, write) in keys.items() if write.lost]:
            del keys[key]

    def never_came(self, node: SimNode, ingested: int) -> None:
        """A written-off epoch whose journal never turned up: what was ingested by then is charged, and streams that had
        not ended wait for it for ever."""
        for write in self.of_epoch[node.name, node.epoch]:
            write.lost = write.lost or write.end > ingested or not write.final

    # --- checks -----------------------------------------------------------------------------------------------------

    def check_positions(self, market: Market, claims: Claims) -> None:
        """Invariant 3 and the caps: at every instant each voucher's parts are its face, and its caps hold as much."""
        books, held, used = market.books, defaultdict(int), defaultdict(int)
        of_voucher: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in market.reservations.values():
            leased = sum(books.balance(accounts.leased(lease.id)) for lease in row.leases)
            parts = of_voucher[row.voucher.id]
            parts[0] += books.balance(accounts.reserved(row.id)) + leased
            charged = books.balance(accounts.used(row.id)) + claims.standing(row.id)
            parts[1] += charged
            if whole := claims.claimed_whole(row.id):
                raise Violation(f"{row.id}: charges {whole} stand in a batch without what was taken back of them")
            code = accounts.cap_contract(row.contract.id)
            held[code] += books.balance(accounts.reserved(row.id)) + leased
            used[code] += charged + claims.rejected(row.id)
        for voucher in market.vouchers:
            idle, charged = of_voucher[voucher.id]
            idle += books.balance(accounts.available(voucher.id))
            if idle + charged + voucher.returned_fen != voucher.face_fen:
                raise Violation(f"{voucher.id}: {idle} + {charged} + {voucher.returned_fen} is not {voucher.face_fen}")
            for code in (voucher.cap_code, market.pool_cap):
                held[code] += idle
                used[code] += charged
        for code, (limit, is_used, is_held) in books.caps.items():
            if (is_used, is_held) != (used[code], held[code]):
                told = f"{is_used} used and {is_held} held of {limit}"
                raise Violation(f"{code} counts {told}; the accounts say {used[code]} and {held[code]}")
        if books.balance(accounts.unissued(PROGRAMME)) < 0:
            raise Violation("the pool is below zero")

    def check_usage(self, market: Market, ingesting: Ingesting, claims: Claims) -> None:
        """Invariant 4, once every journal is sealed: each id charged once, for what its node wrote; nothing else."""
        gross: dict[tuple[str, str], int] = defaultdict(int)
        eligible: dict[tuple[str, str], int] = defaultdict(int)
        for usage_id, use in self.uses.items():
            allowed, must = use.allowed()
            known = ingesting.known.get(usage_id)
            if usage_id in ingesting.quarantined:
                doubtful = self.written_off | self.wild
                if known is not None or not any(write.node in doubtful for write in use.writes):
                    raise Violation(f"{usage_id} is quarantined, and nothing was wrong with its epoch")
                continue
            if known is None:
                if must:
                    raise Violation(f"{usage_id} is on the disk and was never charged")
                continue
            if known.amount_micro not in allowed:
                raise Violation(f"{usage_id} is charged {known.amount_micro}, not one of {sorted(allowed)}")
            if known.eligible:
                self._check_use_by(market, usage_id, use, known.reservation)
            elif known.reservation and not any(write.node in self.wild for write in use.writes):
                raise Violation(f"{usage_id}: its node served it under a voucher that does not cover it")
            if not known.corrected:
                gross[known.reservation, known.contract] += known.amount_micro
                eligible[known.reservation, known.contract] += known.amount_micro if known.eligible else 0
        if len(ingesting.known) > len(self.uses) or not set(ingesting.known) <= set(self.uses):
            raise Violation("something was charged that no node wrote")
        charged = {row.event for row in ingesting.known.values() if row.eligible and row.event}
        if gone := charged - claims.placed():
            raise Violation(f"a voucher pays its share of what {sorted(gone)[:3]} carry, and no claim can have them")
        told = set(ingesting.known) | ingesting.quarantined
        lost = {key for key in self.acknowledged - told if not self.uses[key].writes[-1].lost}
        if lost:
            raise Violation(f"acknowledged and not posted: {sorted(lost)[:3]}")
        for contract in market.contracts.values():
            if contract.own.gross_micro != gross["", contract.id]:
                raise Violation(f"{contract.id}: {contract.own} but its records sum to {gross['', contract.id]}")
            if contract.own.posted_gross_fen != contract.own.gross_micro // MICRO_PER_FEN:
                raise Violation(f"{contract.id}: whole fen are not posted: {contract.own}")
        for row in market.reservations.values():
            key, meter = (row.id, row.contract.id), row.meter
            if (meter.gross_micro, meter.eligible_micro) != (gross[key], eligible[key]):
                raise Violation(f"{row.id}: {meter} but its records sum to {gross[key]} and {eligible[key]}")
            due = meter.eligible_micro * row.ratio_num // (row.ratio_den * MICRO_PER_FEN)
            if (
                meter.posted_gross_fen != meter.gross_micro // MICRO_PER_FEN
                or not 0 <= due - meter.posted_subsidy_fen <= 1
            ):
                raise Violation(f"{row.id}: posted {meter}, due {due}")

    def _check_use_by(self, market: Market, usage_id: str, use: Use, reservation: str) -> None:
        """Invariant 6: no clock carries a call past the last day, by more than clocks may be off."""
        use_by = market.reservations[reservation].voucher.use_by
        if use.true_ms > end_of_day_ms(date.fromisoformat(use_by)) + LIMIT_MS:
            raise Violation(f"{usage_id} is paid by a voucher, and happened after its use-by day {use_by}")

    def check_own_cost(self, market: Market, ingesting: Ingesting) -> None:
        """The monthly cap, exactly; only where every clock is right (the month is judged by the node's)."""
        own: dict[tuple[str, str], int] = defaultdict(int)
        records: dict[tuple[str, str], int] = defaultdict(int)
        for usage_id, known in ingesting.known.items():
            num, den = self.uses[usage_id].ratio
            records[known.contract, known.month] += 1
            own[known.contract, known.month] += known.amount_micro * (den - num) * (DENOMINATORS // den)
        for (contract, month), scaled in own.items():
            cap = market.contracts[contract].monthly_cap_fen
            # ingest rounds each record's own part down to a micro-fen: so much more may fit under the cap
            if cap is not None and scaled > (cap * MICRO_PER_FEN + records[contract, month]) * DENOMINATORS:
                raise Violation(f"{contract} owes {scaled // DENOMINATORS} micro-fen for {month}, its cap is {cap} fen")

    def check_settled(self, market: Market) -> None:
        """Invariant 7, the other way: with every epoch sealed nothing stays out but what is used and not posted yet
        (two fen at most: one that waits for the gross fen that carries it, and the rest of one); nothing at all once a
        contract or voucher is over: what went back of that is exactly what was not used."""
        for row in market.reservations.values():
            if any(lease.state in OPEN for lease in row.leases):
                raise Violation(f"{row.id} has a lease that is open after its epoch was sealed")
            left = sum(market.books.balance(accounts.leased(lease.id)) for lease in row.leases)
            if left > (2 if row.state in ("held", "drawing") else 0):
                raise Violation(f"{row.id}: {left} fen are stranded in sealed leases")
            if row.voucher.state in ENDED and (left or market.books.balance(accounts.reserved(row.id))):
                raise Violation(f"{row.id} still holds something of {row.voucher.id}, which is {row.voucher.state}")
        for voucher in market.vouchers:
            if voucher.state in ENDED and market.books.balance(accounts.available(voucher.id)):
                raise Violation(f"{voucher.id} is {voucher.state} and still holds something")
