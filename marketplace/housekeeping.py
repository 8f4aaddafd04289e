"""What a market does by the clock: vouchers lapse, samples go, announced prices take effect, the ledger is replayed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlmodel import select

from marketplace.catalogue.rollouts import (
    Answers,
    Why,
    broke,
    decide_rollback,
    decide_rollback_by_answers,
    differs,
    roll_back,
)
from marketplace.catalogue.tables import Listing, PriceVersion, Rollout
from marketplace.choosing.samples import purge_expired
from marketplace.clock import now_ms
from marketplace.db import reading, retried, transaction
from marketplace.findings import recording
from marketplace.integrity.books import check_books, is_check_due
from marketplace.integrity.days import close_days, is_due
from marketplace.integrity.segments import record_prefixes
from marketplace.market import Market
from marketplace.vouchers.closing import expire_vouchers
from marketplace.vouchers.ending import close_vouchers
from serving.dataplane import DataPlane

INTERVAL_S = 30.0
_log = logging.getLogger("algomart.housekeeping")


class Housekeeping:
    """One thread that goes round every half minute; a step that fails is logged and tried again the next time."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._looked_ms = now_ms()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def go_round(self) -> None:
        """One round, each step by itself."""
        steps: list[Callable[[], None]] = [
            self._rollouts,
            self._vouchers,
            self._samples,
            self._prices,
            self._replay,
            self._close_days,
            self._findings,
        ]
        for step in steps:
            try:
                step()
            except Exception:
                _log.exception("housekeeping step %s failed", step.__name__)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.go_round()

    def _rollouts(self) -> None:
        """Take back every canary that breaks too often, or whose answers differ by more than they may."""
        plane = self._market.dataplane
        if plane is None:
            return
        with reading(self._market.engine) as session:
            active = [
                (session.get_one(Listing, row.listing_id), row)
                for row in session.exec(select(Rollout).where(Rollout.state == "active"))
            ]
        for listing, row in active:
            why = self._why_back(plane, listing, row)
            if why is None:
                continue
            with transaction(self._market.engine) as session:
                roll_back(session, session.get_one(Listing, listing.id), session.get_one(Rollout, listing.id), why)
            self._market.catalogue_changed(listing.id)
            _log.warning("the canary of %s was taken back", listing.name)

    def _why_back(self, plane: DataPlane, listing: Listing, row: Rollout) -> Why | None:
        tallies = self._market.rollouts.tallies(plane, listing, row)
        canary = tallies.get(row.canary or 0)
        if canary is None:
            return None
        if decide_rollback(tallies[row.stable], canary, row.max_failure_percent):
            return broke(canary)
        found = self._market.comparison_of(listing.name) if row.canary == row.shadow else None
        if found is None:
            return None
        answers = Answers(found["rows"], found["decisions_changed_share"], found["mean_relative_difference"])
        bounds = row.max_decisions_changed_percent, row.max_difference_percent
        return differs(answers) if decide_rollback_by_answers(answers, *bounds) else None

    def _vouchers(self) -> None:
        """Vouchers whose days are over, and those that nothing is left of; run again where the database ended it for
        another writer's sake."""

        def lapse() -> list[str]:
            with transaction(self._market.engine) as session:
                return [voucher.id for voucher in expire_vouchers(session, now_ms())]

        def close() -> list[str]:
            with transaction(self._market.engine) as session:
                return [voucher.id for voucher in close_vouchers(session, now_ms())]

        for voucher in retried(lapse):
            _log.info("voucher %s has lapsed", voucher)
        for voucher in retried(close):
            _log.info("voucher %s is closed", voucher)

    def _close_days(self) -> None:
        """The Merkle roots of days that are over; before them the hashes of what the open journals held."""
        with reading(self._market.engine) as session:
            due = is_due(session, now_ms())
        if not due:
            return
        record_prefixes(self._market.engine, self._market.journals, now_ms())
        with transaction(self._market.engine) as session:
            for row in close_days(session, now_ms()):
                _log.info("day %s is closed: %d transfers, chain %s", row.day, row.transfers, row.chain)

    def _findings(self) -> None:
        """Once a day: everything that the programmes want looked for."""
        with reading(self._market.engine) as session:
            if not recording.is_due(session, now_ms()):
                return
        counts = recording.run(self._market.engine, now_ms())
        _log.info("findings: %(found)d found, %(new)d new, %(changed)d with other evidence", counts)

    def _samples(self) -> None:
        purge_expired(self._market.engine, self._market.settings.home, now_ms())

    def _prices(self) -> None:
        """Cards show the price in force: refresh those whose announced price took effect since the last look."""
        looked, self._looked_ms = self._looked_ms, now_ms()
        with reading(self._market.engine) as session:
            query = select(PriceVersion.listing_id).where(
                PriceVersion.effective_from_ms > looked, PriceVersion.effective_from_ms <= self._looked_ms
            )
            changed = set(session.exec(query))
        for listing_id in changed:
            self._market.catalogue_changed(listing_id)

    def _replay(self) -> None:
        """Once a policy day: every balance and cap counter again from the entries, recorded."""
        if not is_check_due(self._market.engine, now_ms()):
            return
        result = check_books(self._market.engine)
        if result.sound:
            _log.info("the ledger agrees: %d entries, state %s", result.entries, result.sha256)
        else:
            _log.error("%d balances, caps or meters differ from entries or usage: %s", result.wrong_count, result.wrong)
