"""Runs that are past their deadline are told to end."""

from __future__ import annotations

import os
import threading
import time
from typing import Any


class Watchdog:
    """One thread that tells every run past its deadline to end. It sleeps while no deadline is near.

    Where it wakes late by a second or more the process stood still, and the runs with it: they are given that time."""

    IDLE_S = 1.0
    STOOD_STILL_S = 1.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watched: dict[int, tuple[float, Any]] = {}
        self._next_ticket = 0
        self._used = False
        self._wakes_at = float("inf")
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forget_thread)

    def watch(self, options: Any, at: float) -> int:
        """Set `options.terminate` once `time.monotonic()` passes `at`, unless the ticket is forgotten before."""
        with self._lock:
            self._next_ticket += 1
            ticket = self._next_ticket
            self._watched[ticket] = (at, options)
            self._used = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="run-watchdog", daemon=True)
                self._thread.start()
            sooner = at < self._wakes_at
        if sooner:
            self._wake.set()
        return ticket

    def forget(self, ticket: int) -> None:
        with self._lock:
            self._watched.pop(ticket, None)

    def _watch(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                self._wake.clear()
                if now - self._wakes_at >= self.STOOD_STILL_S:
                    stood_s = now - self._wakes_at + self.IDLE_S  # it may have begun so long before
                    self._watched = {ticket: (at + stood_s, options) for ticket, (at, options) in self._watched.items()}
                for ticket, (at, options) in list(self._watched.items()):
                    if at <= now:
                        options.terminate = True
                        del self._watched[ticket]
                nearest = min((at for at, _ in self._watched.values()), default=float("inf"))
                # Linger after use: a busy server must not wake this thread on every run.
                self._wakes_at = min(nearest, now + self.IDLE_S) if self._used or self._watched else float("inf")
                self._used = False
                pause = None if self._wakes_at == float("inf") else max(self._wakes_at - now, 0)
            self._wake.wait(pause)

    def _forget_thread(self) -> None:
        """Threads do not survive a fork; the child starts its own when it needs one."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watched.clear()
        self._wakes_at = float("inf")
        self._thread = None
