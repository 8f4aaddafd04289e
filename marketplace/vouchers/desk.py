"""The lease desk: sets aside, for one serving node, what the next calls of an organisation on one model may cost.

A lease row belongs to (node, epoch, organisation, listing) and is extended (P4 again) rather than replaced, so that
nothing is stranded in half-used ones. It is replaced only when its kind or its reservation changes; the old one then
drains: what it carries stays held until its journal is sealed. Instants come from the desk's clock, once per question.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, select

from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms, policy_date
from marketplace.db import transaction
from marketplace.keys.authentication import check_standing
from marketplace.organisations.tables import Organisation
from marketplace.settings import Settings
from marketplace.usage.tables import TrialCount
from marketplace.vouchers import sale as sales
from marketplace.vouchers.grants import (
    decide_expiry,
)
from marketplace.vouchers.lease_rows import (
    Ask,
    current_lease,
    month_of,
    new_row,
    price_line,
    renew,
    under_filing,
    wire,
)
from marketplace.vouchers.nodes import check_epoch
from marketplace.vouchers.paid_leases import PaidLease
from marketplace.vouchers.refusals import payment_refusal
from marketplace.vouchers.tables import Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_cap, warn_of_exhaustion
from model_store.errors import NotFound, PaymentRequired, Refusal, TooMany, Unavailable
from serving.metering import MICRO_PER_FEN, Lease
from serving.ports import Principal, ServedVersion

TRIES = 3
MAX_TOLD = 10_000


class LeaseDesk:
    """Grants leases from the ledger, one transaction each. Safe from several threads."""

    def __init__(self, engine: Engine, settings: Settings, clock: Callable[[], int] = now_ms) -> None:
        self._engine = engine
        self._lease_seconds = settings.lease_seconds
        self._trials_per_day = settings.trial_runs_per_day
        self._clock = clock
        self._told: set[tuple[Any, ...]] = set()

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
        told = (refusal.code, subscription_id, *(vouchers or ()), month_of(self._clock()))
        if told in self._told:  # a caller who goes on asking must not cost a write each time
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(told)
        with contextlib.suppress(OperationalError), transaction(self._engine) as session:
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
        return PaidLease(session, self._lease_seconds, ask, sale, subscription).serve()

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
        filing = sales.filing_row(session, sale.listing)
        line = price_line(sale, filing, ask.model, "", "calls", 0)
        row = current_lease(session, ask, "", sale.listing.id)
        if row is not None and not under_filing(row, filing):
            row.state = "draining"
            session.add(row)
            row = None
        if row is None:
            row = new_row(ask, "free", "", "", line, expires)
        else:
            renew(row, line, expires)
        session.add(row)
        return wire(row, 0, 0)


def ledger_unavailable() -> Refusal:
    return Unavailable(
        "LEDGER_UNAVAILABLE",
        zh="账本暂时无法访问, 未能预留额度; 已有额度内的调用不受影响",
        en="the ledger cannot be reached just now; calls inside leases already held go on",
        remedy_zh="请稍后重试",
        remedy_en="try again shortly",
        retry_after_s=5,
    )
