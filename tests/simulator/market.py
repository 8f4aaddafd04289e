"""The market in memory: leases, their settling, contracts' ends and lapses, on the shipped decisions.

It is the glue of `marketplace.vouchers` without its database: every amount is decided by the shipped functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any

from marketplace.clock import end_of_day_ms, instant, policy_date
from marketplace.ledger import accounts, postings
from marketplace.usage.rounding import Meter
from marketplace.vouchers import closing
from marketplace.vouchers.grants import (
    MAX_CREDIT_MICRO,
    ceil_div,
    decide_credit,
    decide_expiry,
    decide_grant,
    own_credit_for,
    own_share_micro,
    voucher_share_micro,
)
from marketplace.vouchers.lease_rows import month_of, next_month_ms
from marketplace.vouchers.write_offs import decide_exposure
from serving.metering import MICRO_PER_FEN, Lease, PriceLine
from tests.simulator.books import Books

PROVIDER, PROGRAMME, TRANCHE = "org_vendor", "prg", "one"
LEASE_SECONDS = 3_600
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
OPEN, SEALED = closing.OPEN, closing.SEALED
ENDED = ("expired", "revoked")


@lru_cache(maxsize=4_096)
def month_of_hour(hour: int) -> str:
    """`month_of` for an hour since 1970: months begin on the hour in Shanghai, and asking for each call would cost
    a tenth of a run."""
    return month_of(hour * HOUR_MS)


class Refused(Exception):
    """The market said no; its message is the code."""


@dataclass(slots=True)
class Voucher:
    id: str
    organisation: str
    face_fen: int
    use_by: str
    cap_code: str
    state: str = "active"
    returned_fen: int = 0
    last_use_ms: int = 0

    def __post_init__(self) -> None:
        self.last_use_ms = end_of_day_ms(date.fromisoformat(self.use_by))


@dataclass(slots=True)
class Contract:
    id: str
    organisation: str
    contract_fen: int
    self_pay: bool
    monthly_cap_fen: int | None
    state: str = "active"
    own: Meter = field(default_factory=Meter)
    months: dict[str, int] = field(default_factory=dict)
    reservations: list[Reservation] = field(default_factory=list)
    leases: list[LeaseRow] = field(default_factory=list)


@dataclass(slots=True)
class Reservation:
    id: str
    voucher: Voucher
    contract: Contract
    amount_fen: int
    ratio_num: int
    ratio_den: int
    state: str = "held"
    released_fen: int = 0
    meter: Meter = field(default_factory=Meter)
    leases: list[LeaseRow] = field(default_factory=list)


@dataclass(slots=True)
class LeaseRow:
    """Under the names of the shipped table's row, which `rate` and `decide_returnable` read."""

    id: str
    node: str
    epoch: int
    kind: str
    organisation_id: str
    subscription_id: str
    reservation_id: str
    prices: list[dict[str, Any]]
    expires_at_ms: int
    opened_at_ms: int
    state: str = "open"
    granted_fen: int = 0
    returned_fen: int = 0
    credit_micro: int = 0
    eligible_micro: int = 0
    own_micro: int = 0


@dataclass(slots=True)
class Ask:
    organisation: str
    model: str
    node: str
    epoch: int
    need_micro: int
    held_voucher_micro: int
    held_credit_micro: int


class Market:
    """One programme, any number of enterprises; `prices`: model → micro-fen a call; `filing_ends`: model → the last
    instant of its filing (models without one never lapse)."""

    def __init__(
        self, pool_fen: int, ratio: tuple[int, int], mode: str, prices: dict[str, int], grace_days: int,
        cap_period: str,
    ) -> None:  # fmt: skip
        self.books, self.ratio, self.mode, self.grace_days = Books(), ratio, mode, grace_days
        self.terms = postings.Terms(500, 600)
        self.prices = {model: [(f"{model}#1", micro)] for model, micro in prices.items()}
        self.vouchers: list[Voucher] = []
        self.contracts: dict[str, Contract] = {}  # live and ended
        self.live: dict[str, Contract] = {}  # organisation → its live contract
        self.reservations: dict[str, Reservation] = {}
        self.leases: dict[str, LeaseRow] = {}
        self.of_epoch: dict[tuple[str, int], list[LeaseRow]] = {}
        self.epochs: dict[str, tuple[int, bool]] = {}  # node → newest epoch, open
        self.late: dict[tuple[str, int], dict[str, list[int]]] = {}  # lease → [eligible, exposed, restored]
        self.skewed: set[tuple[str, int]] = set()  # epochs whose node's clock was measured off
        self.down = False
        self.cut_off: set[str] = set()  # nodes that do not reach the market just now
        self.cap_period, self.filing_ends = cap_period, dict[str, int]()
        self._minted = 0
        self.pool_cap = accounts.cap_pool(PROGRAMME, TRANCHE)
        self.books.cap(self.pool_cap, pool_fen)
        self.books.post_all([postings.p1_tranche_approved(PROGRAMME, TRANCHE, pool_fen, 0)])

    def mint(self, prefix: str) -> str:
        self._minted += 1
        return f"{prefix}_{self._minted:09d}"

    # --- entitlement ------------------------------------------------------------------------------------------------

    def issue(self, organisation: str, face_fen: int, use_by: str, at_ms: int) -> Voucher | None:
        face_fen = min(face_fen, self.books.balance(accounts.unissued(PROGRAMME)))
        period = str(policy_date(at_ms).year) if self.cap_period == "calendar_year" else "all"
        cap = accounts.cap_enterprise(PROGRAMME, organisation, period)
        limit, used, held = self.books.cap(cap, 200_000)
        face_fen = min(face_fen, limit - used - held)
        if face_fen <= 0:
            return None
        voucher = Voucher(self.mint("vch"), organisation, face_fen, use_by, cap)
        self.vouchers.append(voucher)
        for code in (cap, self.pool_cap):
            self.books.hold(code, face_fen)
        self.books.post_all([postings.p2_voucher_issued(PROGRAMME, voucher.id, face_fen, at_ms)])
        return voucher

    def subscribe(self, organisation: str, contract_fen: int, self_pay: bool, cap_fen: int | None) -> None:
        row = Contract(self.mint("sub"), organisation, contract_fen, self_pay, cap_fen)
        self.contracts[row.id] = self.live[organisation] = row

    def caps_of(self, reservation: Reservation) -> tuple[str, str, str]:
        contract = accounts.cap_contract(reservation.contract.id)
        return contract, self.pool_cap, reservation.voucher.cap_code

    # --- epochs -----------------------------------------------------------------------------------------------------

    def open_epoch(self, node: str) -> int:
        newest, is_open = self.epochs.get(node, (0, False))
        if is_open:
            raise Refused("EPOCH_OPEN")
        self.epochs[node] = (newest + 1, True)
        return newest + 1

    def check_epoch(self, node: str, epoch: int) -> None:
        if self.epochs.get(node) != (epoch, True):
            raise Refused("EPOCH_FENCED")

    def node_count(self) -> int:
        return max(1, sum(is_open for _, is_open in self.epochs.values()))

    # --- leases -----------------------------------------------------------------------------------------------------

    def open_lease(self, ask: Ask, at_ms: int) -> Lease:
        if self.down:
            raise Refused("ADMISSION_UNAVAILABLE")
        self.check_epoch(ask.node, ask.epoch)
        contract = self.live.get(ask.organisation)
        if contract is None:
            raise Refused("SUBSCRIPTION_REQUIRED")
        version, micro = self.prices[ask.model][-1]
        need = max(ask.need_micro, micro)
        rows = self.of_epoch.get((ask.node, ask.epoch), [])
        mine = (
            r
            for r in rows
            if r.state == "open" and r.subscription_id == contract.id and r.prices[-1]["model"] == ask.model
        )
        row = next(mine, None)
        is_filed = at_ms <= self.filing_ends.get(ask.model, at_ms)
        for reservation in self._payers(contract, at_ms) if is_filed else ():
            lease = self._subsidised(ask, contract, reservation, row, need, version, micro, at_ms)
            if lease is not None:
                return lease
        if not contract.self_pay:
            raise Refused("VOUCHER_EXHAUSTED")
        same = row is not None and row.kind == "self_pay"
        credit = self._credit(ask, contract, row, need, MAX_CREDIT_MICRO, same, at_ms)
        line = self._line(version, ask.model, micro, 0, 1, "")
        row = self._take(
            ask, contract, row if same else None, row, "self_pay", "", line, self._expiry(contract, at_ms, []), at_ms
        )
        return self._answer(ask, row, same, 0, credit)

    def _payers(self, contract: Contract, at_ms: int) -> list[Reservation]:
        """Live reservations of this contract first, then new ones from vouchers that have something left (P3)."""
        mine = [v for v in self.vouchers if v.organisation == contract.organisation and v.state == "active"]
        mine = [v for v in mine if at_ms <= v.last_use_ms]
        prior = contract.reservations
        payers = [r for r in prior if r.state in ("held", "drawing") and r.voucher in mine]
        num, den = self.ratio
        limit = contract.contract_fen * num // den
        already = sum(
            r.amount_fen - r.released_fen if r.state in ("held", "drawing") else r.meter.posted_subsidy_fen
            for r in prior
        )
        for voucher in sorted(mine, key=lambda v: (v.use_by, v.id)):
            fen = max(0, min(self.books.balance(accounts.available(voucher.id)), limit - already))
            if fen:
                already += fen
                payers.append(self._reserve(voucher, contract, fen, limit, at_ms))
        return payers

    def _reserve(self, voucher: Voucher, contract: Contract, fen: int, limit: int, at_ms: int) -> Reservation:
        row = Reservation(self.mint("rsv"), voucher, contract, fen, *self.ratio)
        self.reservations[row.id] = row
        contract.reservations.append(row)
        code = accounts.cap_contract(contract.id)
        self.books.cap(code, limit)
        self.books.hold(code, fen)
        self.books.post_all([postings.p3_reserved(voucher.id, row.id, fen, at_ms)])
        return row

    def _subsidised(
        self, ask: Ask, contract: Contract, reservation: Reservation, row: LeaseRow | None, need: int, version: str,
        micro: int, at_ms: int,
    ) -> Lease | None:  # fmt: skip
        num, den = reservation.ratio_num, reservation.ratio_den
        same = row is not None and row.reservation_id == reservation.id
        has = ask.held_voucher_micro if same else 0
        short = ceil_div(max(0, voucher_share_micro(need, num, den) - has), MICRO_PER_FEN)
        available = self.books.balance(accounts.reserved(reservation.id))
        fen = decide_grant(available, self.node_count(), short, has // MICRO_PER_FEN)
        if fen is None:
            return None
        own = own_share_micro(need, num, den)
        credit = self._credit(
            ask, contract, row, own, own_credit_for(has + fen * MICRO_PER_FEN, num, den) + own, same, at_ms
        )
        filing_end = self.filing_ends.get(ask.model)
        ends = [reservation.voucher.last_use_ms + 1, None if filing_end is None else filing_end + 1]
        lapse = "" if filing_end is None else instant(filing_end).isoformat()
        line = self._line(version, ask.model, micro, num, den, lapse)
        expires = self._expiry(contract, at_ms, ends)
        row = self._take(ask, contract, row if same else None, row, "subsidised", reservation.id, line, expires, at_ms)
        if fen:
            row.granted_fen += fen
            self.books.post_all([postings.p4_leased(reservation.id, row.id, fen, row.granted_fen, at_ms)])
            reservation.state = "drawing"
        return self._answer(ask, row, same, fen * MICRO_PER_FEN, credit)

    def _credit(
        self, ask: Ask, contract: Contract, row: LeaseRow | None, need: int, wanted: int, same: bool, at_ms: int
    ) -> int:
        held, room = ask.held_credit_micro if same else 0, None
        if contract.monthly_cap_fen is not None:
            room = contract.monthly_cap_fen * MICRO_PER_FEN - contract.months.get(month_of_hour(at_ms // HOUR_MS), 0)
            for each in contract.leases:
                if each.state in OPEN:
                    room -= max(0, each.credit_micro - each.own_micro)
            if not same and row is not None:
                room += min(ask.held_credit_micro, max(0, row.credit_micro - row.own_micro))
            wanted = min(wanted, max(need, room // (2 * self.node_count())))
        credit = decide_credit(need, wanted, held, room)
        if credit is None:
            raise Refused("MONTHLY_CAP_REACHED")
        return credit

    def _take(
        self, ask: Ask, contract: Contract, same: LeaseRow | None, old: LeaseRow | None, kind: str, reservation: str,
        line: dict[str, Any], expires: int, at_ms: int,
    ) -> LeaseRow:  # fmt: skip
        if same is not None:
            same.expires_at_ms = expires
            if same.prices[-1] != line:
                same.prices = [*(each for each in same.prices if each != line), line]
            return same
        if old is not None:
            old.state = "draining"
            old.credit_micro -= min(ask.held_credit_micro, max(0, old.credit_micro - old.own_micro))
        row = LeaseRow(
            self.mint("lea"),
            ask.node,
            ask.epoch,
            kind,
            ask.organisation,
            contract.id,
            reservation,
            [line],
            expires,
            at_ms,
        )
        self.leases[row.id] = row
        contract.leases.append(row)
        self.of_epoch.setdefault((ask.node, ask.epoch), []).append(row)
        if reservation:
            self.reservations[reservation].leases.append(row)
        return row

    def _answer(self, ask: Ask, row: LeaseRow, same: bool, voucher_micro: int, credit_micro: int) -> Lease:
        row.credit_micro += credit_micro
        has, credit = (ask.held_voucher_micro, ask.held_credit_micro) if same else (0, 0)
        remaining = min(has + voucher_micro, row.granted_fen * MICRO_PER_FEN) if row.kind == "subsidised" else 0
        line = PriceLine(**{name: row.prices[-1][name] for name in PriceLine.__struct_fields__})
        return Lease(
            row.id, row.node, row.epoch, row.kind, row.organisation_id, row.reservation_id, row.subscription_id,
            remaining, min(credit + credit_micro, row.credit_micro), row.opened_at_ms, row.expires_at_ms, [line],
        )  # fmt: skip

    def _line(self, version: str, model: str, micro: int, num: int, den: int, lapse: str) -> dict[str, Any]:
        return {
            "price_version": version, "model": model, "unit": "calls", "micro_per_unit": micro, "ratio_num": num,
            "ratio_den": den, "filing_valid_until": lapse, "listing_id": model, "provider_id": PROVIDER,
        }  # fmt: skip

    def _expiry(self, contract: Contract, at_ms: int, ends: list[int | None]) -> int:
        month = next_month_ms(at_ms) if contract.monthly_cap_fen is not None else None
        return decide_expiry(at_ms, LEASE_SECONDS, [*ends, month])

    # --- the way back -----------------------------------------------------------------------------------------------

    def seal(self, node: str, epoch: int, at_ms: int) -> None:
        """P6 for every lease of an epoch whose journal is ingested to its end."""
        if self.epochs[node][0] == epoch:  # a late one is sealed while a newer is open
            self.epochs[node] = (epoch, False)
        self._settle(node, epoch, at_ms)
        self.late.pop((node, epoch), None)

    def write_off(self, node: str, epoch: int, at_ms: int) -> None:
        """Two persons: fence, then give back without the journal."""
        self.epochs[node] = (epoch, False)
        self.late[node, epoch] = {
            lease.id: [lease.eligible_micro, self._exposed(lease), 0]
            for lease in self.of_epoch.get((node, epoch), [])
            if lease.state in OPEN
        }
        self._settle(node, epoch, at_ms)

    def _exposed(self, lease: LeaseRow) -> int:
        reservation = self.reservations.get(lease.reservation_id)
        if reservation is None:
            return 0
        ratio = (reservation.ratio_num, reservation.ratio_den)
        return decide_exposure(lease.granted_fen, lease.eligible_micro, *ratio)

    def restore(self, node: str, epoch: int, at_ms: int) -> None:
        """The journal has turned up: set aside again what its node may have used, where it is still there (P4)."""
        for lease_id, facts in self.late[node, epoch].items():
            lease = self.leases[lease_id]
            facts[0] = lease.eligible_micro  # corrections may have taken some of it back meanwhile
            reservation = self.reservations.get(lease.reservation_id)
            if reservation is not None and reservation.state in ("held", "drawing"):
                lease.state = "draining"
                fen = facts[2] = min(facts[1], self.books.balance(accounts.reserved(reservation.id)))
                if fen:
                    lease.granted_fen += fen
                    move = postings.p4_restored(reservation.id, lease.id, fen, lease.granted_fen, "wof", at_ms)
                    self.books.post_all([move])
            self._bound_credit(lease)

    def _bound_credit(self, lease: LeaseRow) -> None:
        contract = self.contracts[lease.subscription_id]
        if contract.monthly_cap_fen is None:
            return
        months = {month_of(at) for at in (lease.opened_at_ms, lease.expires_at_ms - 1)}
        room = contract.monthly_cap_fen * MICRO_PER_FEN - max(contract.months.get(month, 0) for month in months)
        for each in contract.leases:
            if each.state in OPEN and each is not lease:
                room -= max(0, each.credit_micro - each.own_micro)
        lease.credit_micro = min(lease.credit_micro, lease.own_micro + max(0, room))

    def _settle(self, node: str, epoch: int, at_ms: int) -> None:
        touched = {}
        for lease in self.of_epoch.get((node, epoch), []):
            if lease.state in OPEN:
                lease.state = "sealed" if lease.reservation_id else "settled"
                if lease.reservation_id:
                    touched[lease.reservation_id] = self.reservations[lease.reservation_id]
        for reservation in touched.values():
            self.return_remainders(reservation, at_ms)

    def return_remainders(self, reservation: Reservation, at_ms: int) -> None:
        voucher = reservation.voucher
        idle = not any(lease.state in OPEN for lease in reservation.leases)
        over = idle and (reservation.contract.state == "ended" or voucher.state in ENDED)
        self._give_back(reservation, at_ms, everything=over)
        if not over:
            return
        if voucher.state in ENDED:
            self.lapse(voucher, at_ms)
        else:
            self.release_idle(reservation, at_ms)
            reservation.state = "completed" if reservation.meter.posted_gross_fen else "released"

    def _give_back(self, reservation: Reservation, at_ms: int, *, everything: bool) -> None:
        allowed = closing.decide_returnable(reservation.leases, reservation.ratio_num, reservation.ratio_den)  # type: ignore[arg-type]
        for lease in reservation.leases:
            if lease.state not in SEALED:
                continue
            held = self.books.balance(accounts.leased(lease.id))
            fen = held if everything else min(held, allowed)
            if fen:
                allowed -= fen
                lease.returned_fen += fen
                self.books.post_all([postings.p6_sealed(reservation.id, lease.id, fen, lease.returned_fen, at_ms)])
            lease.state = "settled" if fen == held else "sealed"

    def release_idle(self, reservation: Reservation, at_ms: int) -> None:
        fen = self.books.balance(accounts.reserved(reservation.id))
        if not fen:
            return
        reservation.released_fen += fen
        self.books.release(accounts.cap_contract(reservation.contract.id), fen)
        move = postings.p7_contract_ended(reservation.voucher.id, reservation.id, fen, reservation.released_fen, at_ms)
        self.books.post_all([move])

    def end_contract(self, organisation: str, at_ms: int) -> bool:
        contract = self.live.pop(organisation, None)
        if contract is None:
            return False
        contract.state = "ended"
        for reservation in self._live_of(contract=contract):
            self.release_idle(reservation, at_ms)
            self.return_remainders(reservation, at_ms)
        return True

    def expire_vouchers(self, at_ms: int) -> int:
        """What the nightly run does; answers how many lapsed."""
        grace, lapsed = self.grace_days * DAY_MS, 0
        for voucher in self.vouchers:
            if voucher.state in ENDED or at_ms <= voucher.last_use_ms + grace:
                continue
            lapsed += 1
            self.end_voucher(voucher, "expired", at_ms)
        return lapsed

    def end_voucher(self, voucher: Voucher, state: str, at_ms: int) -> None:
        """It has lapsed, or two persons revoked it: what no open lease holds goes back."""
        voucher.state = state
        for reservation in self._live_of(voucher=voucher):
            idle = not any(lease.state in OPEN for lease in reservation.leases)
            self._give_back(reservation, at_ms, everything=idle)
        self.lapse(voucher, at_ms)

    def lapse(self, voucher: Voucher, at_ms: int) -> None:
        """P8: what is left of a voucher and idle under it goes back to the pool, and its caps are released."""
        live = self._live_of(voucher=voucher)
        idle = {r.id: fen for r in live if (fen := self.books.balance(accounts.reserved(r.id)))}
        own = self.books.balance(accounts.available(voucher.id))
        total = own + sum(idle.values())
        if total:
            voucher.returned_fen += total
            self.books.post_all([postings.p8_lapsed(PROGRAMME, voucher.id, own, idle, voucher.returned_fen, at_ms)])
            for code in (voucher.cap_code, self.pool_cap):
                self.books.release(code, total)
        for reservation in live:
            fen = idle.get(reservation.id, 0)
            reservation.released_fen += fen
            self.books.release(accounts.cap_contract(reservation.contract.id), fen)
            if all(lease.state == "settled" for lease in reservation.leases):
                reservation.state = "expired"

    def _live_of(self, contract: Contract | None = None, voucher: Voucher | None = None) -> list[Reservation]:
        return [
            r for r in self.reservations.values()
            if r.state in ("held", "drawing") and (contract is None or r.contract is contract)
            and (voucher is None or r.voucher is voucher)
        ]  # fmt: skip
