"""A serving node with a disk that can lose what was not synced, a clock that is wrong, and a network between it and the
market. The lease arithmetic and the journal's bytes are the shipped ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

from marketplace.nodes.clocks import decide_skew
from serving.journal_format import EndEntry, Entry, ProgressEntry, StartEntry, UsageEntry, frame_of
from serving.leases import HeldLease
from serving.metering import Lease, PriceLine, UsageRecord, rate_usage
from serving.remote.clock import LIMIT_MS
from tests.simulator.market import HOUR_MS, Ask, Market, Refused, month_of_hour
from tests.simulator.oracle import Oracle


@dataclass(slots=True)
class Stream:
    """A stream in hand: what was reserved for it and what it came to so far."""

    record: UsageRecord
    held: HeldLease
    line: PriceLine
    bound: int
    count: int = 0


class SimNode:
    """One process of a serving node, from its epoch's opening to its death. `skew_ms`: its clock less the market's."""

    def __init__(
        self, name: str, epoch: int, market: Market, oracle: Oracle, dice: random.Random, *, skew_ms: int
    ) -> None:
        self.name, self.epoch, self.market, self.oracle, self.dice = name, epoch, market, oracle, dice
        self.skew_ms = skew_ms
        self.stopped = False
        self.disk = bytearray()
        self.synced = 0
        self.seq = 0
        self.held: dict[tuple[str, str], HeldLease] = {}
        self.by_id: dict[str, HeldLease] = {}
        self.streams: list[Stream] = []

    # --- leases -----------------------------------------------------------------------------------------------------

    def reserve(self, organisation: str, model: str, count: int, now_ms: int) -> tuple[HeldLease, PriceLine] | None:
        """Set the price of `count` aside, asking the market where need be; None where it refuses or is not reached."""
        key = (organisation, model)
        for turn in range(3):
            found = self._reserve_now(key, count, now_ms)
            if found is not None or turn == 2:
                return found
            held = self.held.get(key)
            line = None if held is None else held.line_for(model, now_ms + self.skew_ms)
            need = 0 if line is None else rate_usage({"calls": count}, line)
            if not self._ask(key, need, held, now_ms):
                return None
        return None

    def _reserve_now(self, key: tuple[str, str], count: int, now_ms: int) -> tuple[HeldLease, PriceLine] | None:
        held = self.held.get(key)
        at = now_ms + self.skew_ms
        if held is None or held.lease.expires_at_ms <= at:
            return None
        line = held.line_for(key[1], at)
        if line is None or not held.reserve(rate_usage({"calls": count}, line), line):
            return None
        return held, line

    def _ask(self, key: tuple[str, str], need: int, held: HeldLease | None, now_ms: int) -> bool:
        """One question over a network that loses and doubles; False where the caller gets an error."""
        left = {} if held is None else held.left()
        has, credit = left.get("remaining_micro", 0), left.get("credit_micro", 0)
        ask = Ask(key[0], key[1], self.name, self.epoch, need, has, credit)
        luck = self.dice.random()
        if luck < 0.02 or self.name in self.market.cut_off:
            return False  # the question was lost
        try:
            lease = self._put(ask, now_ms)
            if luck < 0.04:
                return False  # the answer was
            if luck < 0.06:
                lease = self._put(ask, now_ms)  # it arrived twice
        except Refused:
            return False
        known = self.by_id.get(lease.lease_id)
        if known is None:
            known = self.by_id[lease.lease_id] = HeldLease(lease)
        else:
            known.extend(lease, left)
        self.held[key] = known
        return True

    def learn(self) -> None:
        """The market's answers tell the node what its clock is off: too much, and it gives its leases up."""
        if decide_skew(1 + self.skew_ms, 1, LIMIT_MS):
            for held in self.by_id.values():
                held.lease.expires_at_ms = 0

    def _put(self, ask: Ask, now_ms: int) -> Lease:
        if decide_skew(now_ms + self.skew_ms, now_ms, LIMIT_MS):
            self.learn()
            raise Refused("CLOCK_SKEWED")
        lease = self.market.open_lease(ask, now_ms)
        self.oracle.granted(self.market, lease)
        return lease

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, usage_id: str, key: str, organisation: str, model: str, count: int, now_ms: int) -> bool:
        """One call of at most `count`; True where it was answered, its record written before."""
        reserved = self.reserve(organisation, model, count, now_ms)
        if reserved is None:
            return False
        held, line = reserved
        bound = rate_usage({"calls": count}, line)
        if self.dice.random() < 0.05:
            held.give_back(bound, line)  # the run failed
            return False
        actual = count if self.dice.random() < 0.7 else self.dice.randint(0, count)
        amount = rate_usage({"calls": actual}, line)
        held.give_back(bound - amount, line)
        record = self._record(usage_id, organisation, held, line, actual, now_ms)
        self.append(UsageEntry(self.seq + 1, record, key))
        self.oracle.finished(self, record, held, line, key, month_of_hour(record.occurred_at_ms // HOUR_MS), now_ms)
        return True

    def begin(self, usage_id: str, organisation: str, model: str, count: int, now_ms: int) -> None:
        reserved = self.reserve(organisation, model, count, now_ms)
        if reserved is None:
            return
        held, line = reserved
        record = self._record(usage_id, organisation, held, line, count, now_ms)
        self.streams.append(Stream(record, held, line, count))
        self.append(StartEntry(self.seq + 1, record))
        self.oracle.began(self, record, held, line, month_of_hour(record.occurred_at_ms // HOUR_MS), now_ms)

    def proceed(self, end: bool) -> bool:
        """Count on one of the streams in hand, or end it; False where there is none."""
        if not self.streams:
            return False
        stream = self.streams[self.dice.randrange(len(self.streams))]
        stream.count = self.dice.randint(stream.count, stream.bound)
        units = {"calls": stream.count}
        amount = rate_usage(units, stream.line)
        record = self._with(stream.record, stream.count, amount)
        if not end:
            self.append(ProgressEntry(self.seq + 1, record.usage_id, units, amount))
            self.oracle.counted(self, record, final=False)
            return True
        self.streams.remove(stream)
        stream.held.give_back(rate_usage({"calls": stream.bound}, stream.line) - amount, stream.line)
        self.append(EndEntry(self.seq + 1, record))
        self.oracle.counted(self, record, final=True)
        return True

    def _record(
        self, usage_id: str, organisation: str, held: HeldLease, line: PriceLine, count: int, now_ms: int
    ) -> UsageRecord:
        units = {"calls": count}
        return UsageRecord(
            usage_id, "key", organisation, f"{line.model}@1", "", line.price_version, held.lease.lease_id, units,
            rate_usage(units, line), now_ms + self.skew_ms, "ok", "", "",
        )  # fmt: skip

    @staticmethod
    def _with(record: UsageRecord, count: int, amount: int) -> UsageRecord:
        return UsageRecord(
            record.usage_id, record.key_id, record.organisation, record.model, record.adapter, record.price_version,
            record.lease_id, {"calls": count}, amount, record.occurred_at_ms, record.status, "", "",
        )  # fmt: skip

    # --- disk -------------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        self.seq += 1
        self.disk += frame_of(entry)

    def sync(self) -> bool:
        before, self.synced = self.synced, len(self.disk)
        return self.synced > before

    def kill(self, power_cut: bool) -> None:
        """The process is gone; with the power, so is some of what was not synced. The last write may be torn."""
        self.stopped = True
        if power_cut:
            kept = self.dice.randint(self.synced, len(self.disk))
            del self.disk[kept:]
            self.oracle.lost(self, kept)
        elif self.dice.random() < 0.5:
            self.disk += self._torn()
        self.streams.clear()

    def _torn(self) -> bytes:
        """The beginning of a frame, or what a disk leaves behind."""
        luck = self.dice.random()
        if luck < 0.3:
            return bytes(self.dice.randint(1, 64))
        whole = frame_of(ProgressEntry(self.seq + 1, "u" * self.dice.randint(1, 40), {"calls": 1}, 1))
        if luck < 0.6:
            return whole[: self.dice.randint(1, len(whole) - 1)]
        broken = bytearray(whole)
        broken[self.dice.randrange(8, len(broken))] ^= 1 << self.dice.randrange(8)
        return bytes(broken)
