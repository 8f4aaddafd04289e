"""Leases at the node: exact integer subtraction, asked for once at a time, reserved before a run and settled after.

Under a subsidised lease a call of `amount` micro-fen at ratio num/den takes amount·num/den of the voucher and the
rest of the enterprise's credit. Both are kept as integers over a common denominator, so that no call is ever rounded:
a call is admitted when `(used + amount) · num <= granted · den` and its own part fits the credit, else not at all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from model_store.errors import Refusal
from serving.errors.access import lease_too_small, price_missing
from serving.errors.node import admission_unavailable
from serving.metering import Lease, PriceLine, rate_usage
from serving.ports import Admission, Principal, ServedVersion

_log = logging.getLogger("algomart.leases")
OPEN_TRIES = 3
MAX_HELD = 100_000
_NEVER = 1 << 62


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class HeldLease:
    """One lease as this node holds it. Used on the event loop only."""

    __slots__ = ("_lapses", "credit_scaled", "granted_scaled", "kind", "lease", "own_scaled", "scale", "voucher_scaled")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.kind = lease.kind
        self.scale = 1
        self.granted_scaled = lease.remaining_micro
        self.credit_scaled = lease.credit_micro
        self.voucher_scaled = 0  # used and reserved, of the voucher
        self.own_scaled = 0  # used and reserved, of the enterprise's credit
        self._lapses: dict[str, int] = {}
        self._take_prices(lease.prices)

    def extend(self, lease: Lease, asked_with: Mapping[str, int]) -> None:
        """The market's answer: its remainders less those that were sent along are what it has added."""
        self.granted_scaled += (lease.remaining_micro - asked_with.get("remaining_micro", 0)) * self.scale
        self.credit_scaled += (lease.credit_micro - asked_with.get("credit_micro", 0)) * self.scale
        self.lease = lease
        self.kind = lease.kind
        self._take_prices(lease.prices)

    def left(self) -> dict[str, int]:
        """Whole micro-fen neither used nor reserved: what `held` tells the market."""
        return {
            "remaining_micro": (self.granted_scaled - self.voucher_scaled) // self.scale,
            "credit_micro": (self.credit_scaled - self.own_scaled) // self.scale,
        }

    def line_for(self, name: str, at_ms: int) -> PriceLine | None:
        """The price of a model under this lease at this instant, if its filing (where it has one) still holds."""
        for line in self.lease.prices:
            if line.model == name:
                break
        else:
            return None
        if self.kind == "subsidised" and at_ms > self._lapses[line.price_version]:
            return None
        return line

    def reserve(self, amount: int, line: PriceLine) -> bool:
        """Set `amount` micro-fen aside; False (nothing set aside) where it does not fit."""
        if self.kind == "subsidised":
            voucher = self.voucher_scaled + amount * line.ratio_num * (self.scale // line.ratio_den)
            own = self.own_scaled + amount * self.scale + self.voucher_scaled - voucher
            if voucher > self.granted_scaled or own > self.credit_scaled:
                return False
            self.voucher_scaled, self.own_scaled = voucher, own
        elif self.kind == "self_pay":
            own = self.own_scaled + amount * self.scale
            if own > self.credit_scaled:
                return False
            self.own_scaled = own
        return True

    def give_back(self, amount: int, line: PriceLine) -> None:
        """Undo (part of) a reservation: the run failed, or came to less."""
        if self.kind == "free" or not amount:
            return
        voucher, own = self._parts(amount, line)
        self.voucher_scaled -= voucher
        self.own_scaled -= own

    def _parts(self, amount: int, line: PriceLine) -> tuple[int, int]:
        if self.kind != "subsidised":
            return 0, amount * self.scale
        voucher = amount * line.ratio_num * (self.scale // line.ratio_den)
        return voucher, amount * self.scale - voucher

    def _take_prices(self, prices: list[PriceLine]) -> None:
        scale = math.lcm(self.scale, *(line.ratio_den for line in prices))
        if scale != self.scale:
            factor = scale // self.scale
            self.granted_scaled *= factor
            self.credit_scaled *= factor
            self.voucher_scaled *= factor
            self.own_scaled *= factor
            self.scale = scale
        self._lapses = {line.price_version: _instant_ms(line.filing_valid_until) for line in prices}


def _instant_ms(text: str) -> int:
    """ISO-8601 with zone → Unix milliseconds; "" never lapses, and what cannot be read has lapsed."""
    if not text:
        return _NEVER
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        _log.error("filing_valid_until is not an instant: %.60s", text)
        return 0


@dataclass(slots=True)
class Reserved:
    """What one call holds of a lease between reservation and settlement."""

    held: HeldLease
    line: PriceLine | None
    amount_micro: int  # the upper bound that was reserved
    lease_id: str
    kind: str

    def amount_for(self, units: Mapping[str, int]) -> int:
        """What a run of `units` costs, in micro-fen: never more than was reserved."""
        return 0 if self.line is None else min(rate_usage(units, self.line), self.amount_micro)

    def units_for(self, units: Mapping[str, int]) -> dict[str, int]:
        """The units as charged: where the reservation bounds the amount, no more units than it pays for are written."""
        line = self.line
        if line is None or not line.micro_per_unit or line.unit not in units:
            return dict(units)
        return {**units, line.unit: min(units[line.unit], self.amount_micro // line.micro_per_unit)}

    def keep(self, amount_micro: int) -> None:
        """Settle: this much is used, the rest of the reservation goes back."""
        if self.line is not None:
            self.held.give_back(self.amount_micro - amount_micro, self.line)
            self.line, self.amount_micro = None, 0

    def cancel(self) -> None:
        """The run failed or never was: nothing is used."""
        self.keep(0)

    @property
    def price_version(self) -> str:
        return "" if self.line is None else self.line.price_version


class LeaseBook:
    """Every lease this node holds, by organisation and model. Used on the event loop only."""

    def __init__(self, admission: Admission, node: str, epoch: int) -> None:
        self._admission = admission
        self.node, self.epoch = node, epoch
        self._held: dict[tuple[str, str, str], HeldLease] = {}
        self._by_id: dict[str, HeldLease] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self.opened = 0

    def find(self, organisation: str, listing_id: str, purpose: str) -> HeldLease | None:
        """The lease held for an organisation's calls of a listing, expired or not."""
        return self._held.get((organisation, listing_id, purpose))

    def reserve_now(
        self, principal: Principal, served: ServedVersion, bound: Mapping[str, int], purpose: str
    ) -> Reserved | None:
        """Reserve from a lease already held; None where one must be opened or extended first."""
        held = self.find(principal.organisation, served.listing_id, purpose)
        if held is None:
            return None
        at = now_ms()
        lease = held.lease
        if lease.expires_at_ms <= at:  # an expired lease stops new admissions only
            return None
        if held.kind == "free":
            return Reserved(held, None, 0, lease.lease_id, "free")
        line = held.line_for(served.name, at)
        if line is None:
            return None
        amount = rate_usage(bound, line)
        if not held.reserve(amount, line):
            return None
        return Reserved(held, line, amount, lease.lease_id, held.kind)

    async def reserve(
        self, principal: Principal, served: ServedVersion, bound: Mapping[str, int], purpose: str
    ) -> Reserved:
        """As `reserve_now`, asking the market where need be, one question per organisation at a time.

        Raises what `Admission.open_lease` raises (`PaymentRequired`, `Forbidden`), and `Unavailable`
        ADMISSION_UNAVAILABLE.
        """
        lock = self._opening.setdefault(principal.organisation, asyncio.Lock())
        amount = 0
        async with lock:
            for _ in range(OPEN_TRIES):
                reserved = self.reserve_now(principal, served, bound, purpose)
                if reserved is not None:
                    return reserved
                held = self.find(principal.organisation, served.listing_id, purpose)
                line = None if held is None else held.line_for(served.name, now_ms())
                amount = 0 if line is None else rate_usage(bound, line)
                # Shielded: a caller who leaves must not strand a lease that the market has already granted.
                await asyncio.shield(asyncio.ensure_future(self._open(principal, served, amount, purpose, held)))
        reserved = self.reserve_now(principal, served, bound, purpose)
        if reserved is not None:
            return reserved
        held = self.find(principal.organisation, served.listing_id, purpose)
        if held is None or held.line_for(served.name, now_ms()) is None:
            raise price_missing(served.name)
        raise lease_too_small(amount)

    async def _open(
        self, principal: Principal, served: ServedVersion, need: int, purpose: str, held: HeldLease | None
    ) -> None:
        asked_with = {} if held is None or held.kind == "free" else held.left()
        try:
            lease = await self._admission.open_lease(
                principal,
                served,
                node=self.node,
                epoch=self.epoch,
                need_micro=need,
                purpose=purpose,
                held=asked_with,
            )
        except Refusal:
            raise
        except Exception as error:
            _log.exception("open_lease failed")
            raise admission_unavailable() from error
        self.opened += 1
        known = self._by_id.get(lease.lease_id)
        if known is None:
            self._make_room()
            known = self._by_id[lease.lease_id] = HeldLease(lease)
        else:
            known.extend(lease, asked_with)
        self._held[(principal.organisation, served.listing_id, purpose)] = known

    def _make_room(self) -> None:
        """Forget leases that have expired once there are very many; what they hold is settled by the market."""
        if len(self._by_id) < MAX_HELD:
            return
        at = now_ms()
        self._by_id = {key: held for key, held in self._by_id.items() if held.lease.expires_at_ms > at}
        self._held = {key: held for key, held in self._held.items() if held.lease.lease_id in self._by_id}
        self._opening = {key: lock for key, lock in self._opening.items() if lock.locked()}

    def leases(self) -> list[HeldLease]:
        return list(self._by_id.values())

    def expire(self, organisation: str | None = None, listing_id: str | None = None) -> None:
        """Ask the market again at the next call of an organisation, or of a listing (None: of all): terms changed."""
        if listing_id is None:
            found = list(self._by_id.values())
        else:
            found = [held for (_, listing, _), held in self._held.items() if listing == listing_id]
        for held in found:
            if organisation is None or held.lease.organisation == organisation:
                held.lease.expires_at_ms = 0
