"""Balances by replay, the hash of the ledger's state, and the trial balance."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import case, func
from sqlmodel import Session, col, select

from marketplace.ledger.replay import replay
from marketplace.ledger.tables import LedgerAccount, LedgerEntry


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Balances replayed from the entries. `wrong` {account: (kept, replayed)} is empty on a sound ledger."""

    balances: dict[str, int]
    entries: int
    sha256: str
    kept_sha256: str
    wrong: dict[str, tuple[int, int]]
    lopsided: tuple[int, ...]  # the first transfers that do not sum to zero in some ledger

    @property
    def sound(self) -> bool:
        return not self.wrong and not self.lopsided and self.sha256 == self.kept_sha256


def hash_state(balances: dict[str, int]) -> str:
    """SHA-256 over `code<TAB>fen<LF>` in code order; accounts at zero count like any other."""
    digest = hashlib.sha256()
    for code in sorted(balances):
        digest.update(f"{code}\t{balances[code]}\n".encode())
    return digest.hexdigest()


def rebuild(session: Session) -> Rebuilt:
    """Replay every entry and compare with the balances kept beside them. Changes nothing."""
    replayed = replay(session)
    balances = replayed.balances
    kept = dict(session.exec(select(LedgerAccount.code, LedgerAccount.balance_fen)).all())
    for code in kept:
        balances[code] += 0  # an account that was opened and never posted to stands at zero in both
    wrong = {
        code: (kept.get(code, 0), fen) for code, fen in balances.items() if kept.get(code, 0) != fen or code not in kept
    }
    return Rebuilt(
        balances=dict(balances),
        entries=replayed.entries,
        sha256=hash_state(balances),
        kept_sha256=hash_state(kept),
        wrong=wrong,
        lopsided=tuple(replayed.lopsided),
    )


def trial_balance(session: Session) -> dict[str, Any]:
    """Per ledger and kind of account: balance, turnover and number of accounts; `balanced` when each ledger is zero."""
    turnover = (
        sa.select(
            col(LedgerEntry.account),
            func.sum(case((col(LedgerEntry.amount_fen) > 0, LedgerEntry.amount_fen), else_=0)).label("into"),
            func.sum(case((col(LedgerEntry.amount_fen) < 0, -col(LedgerEntry.amount_fen)), else_=0)).label("out"),
        )
        .group_by(col(LedgerEntry.account))
        .subquery()
    )
    query = (
        sa.select(
            col(LedgerAccount.code),
            col(LedgerAccount.ledger),
            col(LedgerAccount.balance_fen),
            turnover.c.into,
            turnover.c.out,
        )
        .join(turnover, turnover.c.account == col(LedgerAccount.code), isouter=True)
        .order_by(col(LedgerAccount.code))
    )
    rows: dict[str, dict[str, Any]] = {}
    ledgers: dict[str, int] = defaultdict(int)
    for code, ledger, fen, into, out in session.connection().execute(query):
        kind = code.partition("[")[0]
        row = rows.setdefault(
            kind, {"account": kind, "ledger": ledger, "balance_fen": 0, "into_fen": 0, "out_fen": 0, "accounts": 0}
        )
        row["balance_fen"] += fen
        row["into_fen"] += int(into or 0)
        row["out_fen"] += int(out or 0)
        row["accounts"] += 1
        ledgers[ledger] += fen
    return {
        "items": list(rows.values()),
        "total": len(rows),
        "ledgers": dict(ledgers),
        "balanced": not any(ledgers.values()),
    }
