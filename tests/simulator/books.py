"""The ledger in memory: balances, events and caps under the shipped rules of posting (`check_entries`, `has_floor`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from marketplace.ledger.accounts import has_floor
from marketplace.ledger.posting import Posting, check_entries


class Violation(AssertionError):
    """An invariant does not hold."""


class Books:
    """Every transfer ever posted, once per event; no floor and no cap is ever passed."""

    def __init__(self) -> None:
        self.balances: dict[str, int] = defaultdict(int)
        self.transfers: dict[str, Posting] = {}  # event key → posting, in the order of posting
        self.caps: dict[str, list[int]] = {}  # code → [limit, used, held]

    def post_all(self, postings: Iterable[Posting]) -> None:
        for posting in postings:
            check_entries(posting.kind, posting.entries)
            standing = self.transfers.get(posting.event_key)
            if standing is not None:
                if standing.entries != posting.entries:
                    raise Violation(f"the event {posting.event_key} stands with other entries")
                continue
            self.transfers[posting.event_key] = posting
            for entry in posting.entries:
                self.balances[entry.account] += entry.amount_fen
            for entry in posting.entries:
                if self.balances[entry.account] < 0 and has_floor(entry.account):
                    below = self.balances[entry.account]
                    raise Violation(f"{posting.kind} takes {entry.account} to {below} fen ({posting.event_key})")

    def balance(self, code: str) -> int:
        return self.balances.get(code, 0)

    def cap(self, code: str, limit_fen: int = 0) -> list[int]:
        return self.caps.setdefault(code, [limit_fen, 0, 0])

    def hold(self, code: str, fen: int) -> None:
        self._move(code, 0, fen)

    def release(self, code: str, fen: int) -> None:
        self._move(code, 0, -fen)

    def use(self, code: str, fen: int) -> None:
        self._move(code, fen, -fen)

    def take_back(self, code: str, fen: int) -> None:
        self._move(code, -fen, fen)

    def _move(self, code: str, used: int, held: int) -> None:
        cap = self.caps[code]
        cap[1] += used
        cap[2] += held
        if min(cap[1], cap[2]) < 0 or cap[1] + cap[2] > cap[0]:
            raise Violation(f"the cap {code} stands at limit, used, held = {cap}")

    def check_rebuild(self) -> None:
        """Invariants 1 and 9: ΣQ is zero, and the balances are what replaying the transfers gives."""
        again: dict[str, int] = defaultdict(int)
        for posting in self.transfers.values():
            for entry in posting.entries:
                again[entry.account] += entry.amount_fen
        if {k: v for k, v in again.items() if v} != {k: v for k, v in self.balances.items() if v}:
            raise Violation("the balances are not those that replaying the transfers gives")
        for ledger in ("Q.", "M."):
            if sum(fen for code, fen in again.items() if code.startswith(ledger)):
                raise Violation(f"ledger {ledger[0]} does not sum to zero")
