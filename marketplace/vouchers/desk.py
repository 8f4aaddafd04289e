"""The lease desk: sets aside, for one serving node, what the next calls of an organisation on one model may cost.

A lease row belongs to (node, epoch, organisation, listing) and is extended (P4 again) rather than replaced, so that
nothing is stranded in half-used ones. It is replaced only when its kind or its reservation changes; the old one then
drains: what it carries stays held until its journal is sealed. Instants come from the desk's clock, once per question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, col, select

from marketplace.catalogue.tables import Listing
from marketplace.clock import end_of_day_ms, now_ms, policy_date
from marketplace.db import transaction
from marketplace.keys.authentication import check_standing
from marketplace.ledger import accounts, postings
from marketplace.ledger.posting import balance, post_all
from marketplace.organisations.tables import Organisation
from marketplace.settings import Settings
from marketplace.usage.tables import TrialCount
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
    month_of,
    new_row,
    next_month_ms,
    own_cost_micro,
    price_line,
    renew,
    wire,
)
from marketplace.vouchers.nodes import check_epoch, node_count
from marketplace.vouchers.refusals import payment_refusal
from marketplace.vouchers.reservations import Buyer, Held, coverage, held_vouchers, live_reservations, reserve_more
from marketplace.vouchers.tables import LeaseRow, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_cap, warn_of_exhaustion
from model_store.errors import NotFound, PaymentRequired, Refusal, TooMany, Unavailable
from serving.metering import MICRO_PER_FEN, Lease
from serving.ports import Principal, ServedVersion

TRIES = 3


class LeaseDesk:
    """Grants leases from the ledger, one transaction each. Safe from several threads."""

    def __init__(self, engine: Engine, settings: Settings, clock: Callable[[], int] = now_ms) -> None:
        self._engine = engine
        self._lease_seconds = settings.lease_seconds
        self._trials_per_day = settings.trial_runs_per_day
        self._clock = clock

    def open(
        self,
        principal: Principal,
        served: ServedVersion,
        *,
        node: str,
        epoch: int,
        need_micro: int,
        purpose: str,
        held: Mapping[str, int],
    ) -> Lease:
        """See `serving.ports.Admission.open_lease`. Blocks on the database.

        Raises `PaymentRequired` (codes of `refusals`), `Forbidden` ORGANISATION_NOT_APPROVED, `TooMany` TRIALS_USED_UP,
        `Conflict` EPOCH_FENCED, and `Unavailable` LEDGER_UNAVAILABLE where the ledger cannot be asked: a node then
        serves inside the leases it has, and nothing else that costs.
        """
        ask = Ask(
            organisation=principal.organisation,
            model=served.name,
            node=node,
            epoch=epoch,
            need_micro=max(0, need_micro),
            held_voucher_micro=max(0, held.get("remaining_micro", 0)),
            held_credit_micro=max(0, held.get("credit_micro", 0)),
            at_ms=self._clock(),
        )
        for left in reversed(range(TRIES)):
            try:
                with transaction(self._engine) as session:
                    return self._open(session, ask, served.listing_id, principal.role, purpose)
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                if not left:
                    raise ledger_unavailable() from error
            except PaymentRequired as refusal:
                self._warn(refusal)
                raise
        raise AssertionError("unreachable")

    def _warn(self, refusal: PaymentRequired) -> None:
        """The notice of a refusal outlives it: the refused transaction itself was rolled back."""
        vouchers, subscription_id = refusal.details.get("vouchers"), refusal.details.get("subscription")
        if not vouchers and refusal.code != "MONTHLY_CAP_REACHED":
            return
        with transaction(self._engine) as session:
            for voucher_id in vouchers or ():
                warn_of_exhaustion(session, session.get_one(Voucher, voucher_id))
            if refusal.code == "MONTHLY_CAP_REACHED":
                subscription = session.get_one(Subscription, subscription_id)
                cap = (subscription.monthly_cap_fen or 0) * MICRO_PER_FEN
                warn_of_cap(session, subscription, month_of(self._clock()), cap)

    def _open(self, session: Session, ask: Ask, listing_id: str, role: str, purpose: str) -> Lease:
        check_epoch(session, ask.node, ask.epoch)
        organisation = session.get_one(Organisation, ask.organisation)
        check_standing(organisation)
        listing = session.get(Listing, listing_id)
        if listing is None:
            raise NotFound("MODEL_NOT_FOUND", zh=f"没有模型“{ask.model}”", en=f"there is no model {ask.model!r}")
        sale = sales.find_sale(session, listing, ask.organisation, ask.at_ms, operator=role == "operator")
        if purpose == "trial":
            self._check_trials(session, ask)
        if purpose == "trial" or sale.free:
            return self._free(session, ask, sale)
        subscription = session.exec(
            select(Subscription)
            .where(
                Subscription.organisation_id == ask.organisation,
                Subscription.listing_id == sale.sold_under.id,
                Subscription.state == "active",
            )
            .with_for_update()
        ).first()
        if subscription is None:
            raise payment_refusal("SUBSCRIPTION_REQUIRED", model=sale.sold_under.name)
        assert sale.price is not None
        return _Counter(session, self._lease_seconds, ask, sale, subscription).serve()

    def _check_trials(self, session: Session, ask: Ask) -> None:
        count = session.get(TrialCount, (ask.organisation, policy_date(ask.at_ms).isoformat()))
        if count is not None and count.runs >= self._trials_per_day:
            raise TooMany(
                "TRIALS_USED_UP",
                zh=f"今日免费试用次数({self._trials_per_day})已用完",
                en=f"today's {self._trials_per_day} free trial runs are used up",
                remedy_zh="请明日再试, 或订阅后正式调用",
                remedy_en="try again tomorrow, or subscribe and call it for use",
                retry_after_s=3600,
            )

    def _free(self, session: Session, ask: Ask, sale: sales.Sale) -> Lease:
        """A lease that costs nothing: trials, one's own models, models without a price."""
        expires = decide_expiry(ask.at_ms, self._lease_seconds, [])
        if sale.price is None:
            expires = decide_expiry(
                ask.at_ms, self._lease_seconds, [sales.next_price_change_ms(session, sale, ask.at_ms)]
            )
        line = price_line(sale, ask.model, "", "calls", 0)
        row = current_lease(session, ask, "", sale.listing.id)
        if row is None:
            row = new_row(ask, "free", "", "", line, expires)
        else:
            renew(row, line, expires)
        session.add(row)
        return wire(row, 0, 0)


class _Counter:
    """One priced question, inside one transaction: a voucher's lease if any pays, else the enterprise's own."""

    def __init__(
        self, session: Session, lease_seconds: int, ask: Ask, sale: sales.Sale, subscription: Subscription
    ) -> None:
        assert sale.price is not None
        self.session, self.lease_seconds = session, lease_seconds
        self.ask, self.sale, self.price, self.subscription = ask, sale, sale.price, subscription
        self.need = max(ask.need_micro, sale.price.micro_per_unit)  # 0: the node does not know the price yet
        self.offer = sales.offer_of(session, sale)
        self.row = current_lease(session, ask, subscription.id, sale.listing.id)
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
        related = sales.are_related(self.session, self.ask.organisation, self.sale.provider_id)
        buyer = Buyer(self.subscription, self.offer, related, self.ask.at_ms)
        live = live_reservations(self.session, self.subscription.id)
        for held in vouchers:
            mine = [row for row in live if row.voucher_id == held.voucher.id]
            reason = coverage(held, buyer) if mine else None
            if reason is not None:
                reasons.append(reason)
                continue
            for reservation in mine:
                lease = self._subsidised(held, reservation)
                if lease is not None:
                    return lease
                reasons.append(Reason.VOUCHER_EXHAUSTED)
                self.used_up.append(held.voucher)
        made, more = reserve_more(self.session, buyer, vouchers)
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
        same = row is not None and row.kind == "subsidised" and row.reservation_id == reservation.id
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
        lapse = sales.filing_end_text(self.offer) if held.rules.filing_required else ""
        line = self._line(num, den, lapse)
        row = self._take_row(same, "subsidised", reservation.id, line, self._expiry(ends))
        if fen:
            row.granted_fen += fen
            post_all(self.session, [postings.p4_leased(reservation.id, row.id, fen, row.granted_fen, ask.at_ms)])
            reservation.state = "drawing"
            self.session.add(reservation)
        return self._answer(row, same, fen * MICRO_PER_FEN, credit)

    def _self_pay(self) -> Lease:
        row = self.row
        same = row is not None and row.kind == "self_pay"
        credit = self._credit(self.need, MAX_CREDIT_MICRO, same)
        row = self._take_row(same, "self_pay", "", self._line(0, 1, ""), self._expiry([]))
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

    def _line(self, num: int, den: int, lapse: str) -> dict[str, Any]:
        line = price_line(self.sale, self.ask.model, self.price.id, self.price.unit, self.price.micro_per_unit)
        return line | {"ratio_num": num, "ratio_den": den, "filing_valid_until": lapse}

    def _expiry(self, ends: list[int | None]) -> int:
        change = sales.next_price_change_ms(self.session, self.sale, self.ask.at_ms)
        month = next_month_ms(self.ask.at_ms) if self.subscription.monthly_cap_fen is not None else None
        return decide_expiry(self.ask.at_ms, self.lease_seconds, [*ends, change, month])


def ledger_unavailable() -> Refusal:
    return Unavailable(
        "LEDGER_UNAVAILABLE",
        zh="账本暂时无法访问, 未能预留额度; 已有额度内的调用不受影响",
        en="the ledger cannot be reached just now; calls inside leases already held go on",
        remedy_zh="请稍后重试",
        remedy_en="try again shortly",
        retry_after_s=5,
    )


def _after(end_ms: int | None) -> int | None:
    return None if end_ms is None else end_ms + 1
