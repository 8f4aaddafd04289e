"""What the market does by itself: vouchers lapse (P8) when their grace is over, and the ledger is replayed daily."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import date

from sqlalchemy import Engine

from marketplace.clock import now_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.ledger.rebuild import rebuild
from marketplace.organisations import audit, notices
from marketplace.vouchers.closing import expire_vouchers

INTERVAL_S = 60.0
_log = logging.getLogger("algomart.upkeep")


class Upkeep:
    """One thread. `start()` with the market, `stop()` with it; `run_once()` does what is due now."""

    def __init__(self, engine: Engine, clock: Callable[[], int] = now_ms) -> None:
        self._engine, self._clock = engine, clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._replayed: date | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def run_once(self) -> None:
        """Let vouchers lapse; once per Shanghai day, replay the ledger and tell the operators if it is not sound."""
        at = self._clock()
        with transaction(self._engine) as session:
            expire_vouchers(session, at)
        if self._replayed != policy_date(at):
            self._replay()
            self._replayed = policy_date(at)

    def _replay(self) -> None:
        with reading(self._engine) as session:
            rebuilt = rebuild(session)
        with transaction(self._engine) as session:
            audit.record(
                session,
                actor="system",
                action="ledger.replay",
                subject=rebuilt.sha256,
                sound=rebuilt.sound,
                entries=rebuilt.entries,
            )
            if not rebuilt.sound:
                _log.error("the ledger does not replay: %s", rebuilt.wrong)
                notices.notify_operators(
                    session,
                    "LEDGER_UNSOUND",
                    zh=f"账本重放不一致: {len(rebuilt.wrong)} 个账户, {len(rebuilt.lopsided)} 笔入账",
                    en=f"the ledger does not replay: {len(rebuilt.wrong)} accounts, {len(rebuilt.lopsided)} transfers",
                    link="/city/ledger",
                )

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.run_once()
            except Exception:  # tomorrow's run, or the next minute's, finds the same work again
                _log.exception("upkeep failed; trying again")
            self._stop.wait(INTERVAL_S)
