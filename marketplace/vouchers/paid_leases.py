"""A lease that costs: a voucher's where one pays its share of the call, else the enterprise's own if it opted so."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from typing import Any

from sqlmodel import Session, col, select

from marketplace.clock import end_of_day_ms
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import balance, post_all
from marketplace.vouchers import sale as sales
from marketplace.vouchers.closing import OPEN
from marketplace.vouchers.eligibility import Reason, decide_reason
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
from marketplace.vouchers.lease_rows import (
    Ask,
    current_lease,
    new_row,
    next_month_ms,
    own_cost_micro,
    price_line,
    renew,
    under_filing,
    wire,
)
from marketplace.vouchers.nodes import node_count
from marketplace.vouchers.refusals import payment_refusal
from marketplace.vouchers.reservations import (
    Buyer,
    Held,
    coverage,
    declared_fen,
    held_vouchers,
    live_reservations,
    ratio_for,
    reserve_more,
)
from marketplace.vouchers.tables import LeaseRow, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_exhaustion
from serving.metering import MICRO_PER_FEN, Lease


class PaidLease:
    """One priced question, inside one transaction: a voucher's lease if any pays, else the enterprise's own."""

    def __init__(
        self, session: Session, lease_seconds: int, ask: Ask, sale: sales.Sale, subscription: Subscription
    ) -> None:
        assert sale.price is not None
        self.session, self.lease_seconds = session, lease_seconds
        self.ask, self.sale, self.price, self.subscription = ask, sale, sale.price, subscription
        self.need = max(ask.need_micro, sale.price.micro_per_unit)  # 0: the node does not know the price yet
        self.offer, self.filing = sales.offer_of(session, sale), sales.filing_row(session, sale.listing)
        # in the order of `vouchers.locks`: the contract's reservations, the node's lease, the contract's cap
        self.live = live_reservations(session, subscription.id)
        self.row = current_lease(session, ask, subscription.id, sale.listing.id)
        if self.live:
            caps.lock_caps(session, [accounts.cap_contract(subscription.id)])
        self.used_up: list[Voucher] = []

    def serve(self) -> Lease:
        reasons: list[Reason] = []
        lease = self._from_vouchers(reasons)
        if lease is None:
            if self.subscription.on_voucher_end != "self_pay":
                reason = decide_reason(reasons)
                raise payment_refusal(
                    str(reason),
                    model=self.sale.sold_under.name,
                    subscription=self.subscription.id,
                    vouchers=[voucher.id for voucher in self.used_up],
                )
            lease = self._self_pay()
            for voucher in self.used_up:
                warn_of_exhaustion(self.session, voucher)
        return lease

    def _from_vouchers(self, reasons: list[Reason]) -> Lease | None:
        vouchers = held_vouchers(self.session, self.ask.organisation)
        if not vouchers:
            return None
        relation = sales.relation_between(self.session, self.ask.organisation, self.sale.provider_id)
        declared = declared_fen(self.session, self.subscription.id)
        buyer = Buyer(self.subscription, self.offer, relation, self.ask.at_ms, declared)
        for held in vouchers:
            mine = [row for row in self.live if row.voucher_id == held.voucher.id]
            reason = coverage(held, buyer) if mine else None
            # another model of the contract may be paid at another ratio: what was set aside at that is not for this one
            ratio = ratio_for(self.session, held, self.offer).fraction if mine and reason is None else None
            if reason is not None:
                reasons.append(reason)
                continue
            for reservation in mine:
                if Fraction(reservation.ratio_num, reservation.ratio_den) != ratio:
                    continue
                lease = self._subsidised(held, reservation)
                if lease is not None:
                    return lease
                reasons.append(Reason.VOUCHER_EXHAUSTED)
                self.used_up.append(held.voucher)
        made, more = reserve_more(self.session, buyer, vouchers, self.need)
        reasons.extend(more)
        of = {held.voucher.id: held for held in vouchers}
        for reservation in made:
            lease = self._subsidised(of[reservation.voucher_id], reservation)
            if lease is not None:
                return lease
            reasons.append(Reason.VOUCHER_EXHAUSTED)
        return None

    def _subsidised(self, held: Held, reservation: Reservation) -> Lease | None:
        """A lease on this reservation, None where it does not cover the call in hand."""
        num, den, ask = reservation.ratio_num, reservation.ratio_den, self.ask
        row = self.row
        same = row is not None and row.reservation_id == reservation.id and self._renews(row, "subsidised")
        has = ask.held_voucher_micro if same else 0
        short = ceil_div(max(0, voucher_share_micro(self.need, num, den) - has), MICRO_PER_FEN)
        available = balance(self.session, accounts.reserved(reservation.id), lock=True)
        fen = decide_grant(available, node_count(self.session), short, has // MICRO_PER_FEN)
        if fen is None:
            return None
        own = own_share_micro(self.need, num, den)
        carried = own_credit_for(has + fen * MICRO_PER_FEN, num, den)
        credit = self._credit(own, carried + own, same)
        ends = [
            end_of_day_ms(date.fromisoformat(held.voucher.use_by)) + 1,
            _after(sales.filing_end_ms(self.offer)) if held.rules.filing_required else None,
        ]
        line = self._line(num, den, judged=held.rules.filing_required)
        row = self._take_row(same, "subsidised", reservation.id, line, self._expiry(ends))
        if fen:
            row.granted_fen += fen
            post_all(self.session, [postings.p4_leased(reservation.id, row.id, fen, row.granted_fen, ask.at_ms)])
            reservation.state = "drawing"
            self.session.add(reservation)
        return self._answer(row, same, fen * MICRO_PER_FEN, credit)

    def _self_pay(self) -> Lease:
        row = self.row
        same = row is not None and self._renews(row, "self_pay")
        credit = self._credit(self.need, MAX_CREDIT_MICRO, same)
        row = self._take_row(same, "self_pay", "", self._line(0, 1), self._expiry([]))
        return self._answer(row, same, 0, credit)

    def _credit(self, need: int, wanted: int, same: bool) -> int:
        """Own credit to add, within the monthly cap; 402 MONTHLY_CAP_REACHED where it does not cover the call."""
        cap = self.subscription.monthly_cap_fen
        held = self.ask.held_credit_micro if same else 0
        room = None
        if cap is not None:
            room = cap * MICRO_PER_FEN - own_cost_micro(self.session, self.subscription.id, self.ask.at_ms)
            room -= self._outstanding(same)
            wanted = min(wanted, max(need, room // (2 * node_count(self.session))))
        credit = decide_credit(need, wanted, held, room)
        if credit is None:
            raise payment_refusal("MONTHLY_CAP_REACHED", subscription=self.subscription.id, monthly_cap_fen=cap)
        return credit

    def _outstanding(self, same: bool) -> int:
        """Own credit in nodes' hands. What the node hands back with a lease that is being replaced is not."""
        query = select(LeaseRow).where(LeaseRow.subscription_id == self.subscription.id, col(LeaseRow.state).in_(OPEN))
        total = 0
        for row in self.session.exec(query):
            total += max(0, row.credit_micro - row.own_micro)
        if not same and self.row is not None:
            total -= min(self.ask.held_credit_micro, max(0, self.row.credit_micro - self.row.own_micro))
        return total

    def _take_row(self, same: bool, kind: str, reservation: str, line: dict[str, Any], expires: int) -> LeaseRow:
        """The lease row to answer with: the current one, or a new one that it drains in favour of."""
        if same:
            assert self.row is not None
            renew(self.row, line, expires)
            self.session.add(self.row)
            return self.row
        if self.row is not None:
            old = self.row
            old.state = "draining"
            old.credit_micro -= min(self.ask.held_credit_micro, max(0, old.credit_micro - old.own_micro))
            self.session.add(old)
        row = new_row(self.ask, kind, self.subscription.id, reservation, line, expires)
        self.session.add(row)
        self.session.flush()
        return row

    def _answer(self, row: LeaseRow, same: bool, voucher_micro: int, credit_micro: int) -> Lease:
        """What the node holds from now on: what it told us it has, plus what was added.

        Never more than the row was granted in all: should an earlier answer have been lost on its way, what the node
        tells is of an older lease, and this bound is what keeps the sum right.
        """
        row.credit_micro += credit_micro
        self.session.add(row)
        has, credit = (self.ask.held_voucher_micro, self.ask.held_credit_micro) if same else (0, 0)
        return wire(
            row,
            min(has + voucher_micro, row.granted_fen * MICRO_PER_FEN) if row.kind == "subsidised" else 0,
            min(credit + credit_micro, row.credit_micro),
        )

    def _renews(self, row: LeaseRow, kind: str) -> bool:
        return row.kind == kind and under_filing(row, self.filing)

    def _line(self, num: int, den: int, *, judged: bool = False) -> dict[str, Any]:
        """`judged`: the voucher pays within the filing only, from its first instant to its last."""
        price = self.price
        line = price_line(self.sale, self.filing, self.ask.model, price.id, price.unit, price.micro_per_unit)
        line |= {"ratio_num": num, "ratio_den": den}
        if judged:
            line["filing_valid_from"] = sales.filing_start_text(self.offer)
            line["filing_valid_until"] = sales.filing_end_text(self.offer)
        return line

    def _expiry(self, ends: list[int | None]) -> int:
        change = sales.next_price_change_ms(self.session, self.sale, self.ask.at_ms)
        month = next_month_ms(self.ask.at_ms) if self.subscription.monthly_cap_fen is not None else None
        return decide_expiry(self.ask.at_ms, self.lease_seconds, [*ends, change, month])


def _after(end_ms: int | None) -> int | None:
    return None if end_ms is None else end_ms + 1
