"""The nightly check: every balance and every cap counter rebuilt from the entries, and held against what is kept.

Balances are sums of entries. A cap's counters are what the entries say of the vouchers and contracts it stands for:
`held` what they hold and have not used, `used` what was charged to them (corrections off; what was finally rejected is
off the enterprise's and the pool's cap, and stays on the contract's). What was charged is held against the usage rows
and the meters too (`integrity.metered`). The result is a row of `ledger_check`.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.claims.tables import ClaimLine
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading, snapshot, transaction
from marketplace.integrity.metered import check_metered
from marketplace.integrity.tables import LedgerCheck
from marketplace.ledger import accounts
from marketplace.ledger.replay import Replayed, replay
from marketplace.ledger.tables import CapCounter, LedgerAccount, LedgerEntry, LedgerTransfer
from marketplace.organisations.notices import notify_operators
from marketplace.vouchers.tables import LeaseRow, Reservation, Voucher

SHOWN = 50
CHUNK = 10_000
Counters = dict[str, list[int]]  # cap code → [used, held]


@dataclass(slots=True)
class Compared:
    """What the comparison found. `wrong` holds the first differences, `wrong_count` counts all."""

    replayed: Replayed
    accounts: int = 0
    caps: int = 0
    sha256: str = ""
    kept_sha256: str = ""
    wrong: list[dict[str, Any]] = field(default_factory=list)
    wrong_count: int = 0

    def note(self, **difference: Any) -> None:
        self.wrong_count += 1
        if len(self.wrong) < SHOWN:
            self.wrong.append(difference)

    @property
    def sound(self) -> bool:
        return not self.wrong_count and self.sha256 == self.kept_sha256


def compare(session: Session) -> Compared:
    """Rebuild and compare; changes nothing. `session` must see one state throughout (`db.snapshot`)."""
    found = Compared(replay(session))
    for transfer in found.replayed.lopsided:
        found.note(what="transfer", of=str(transfer))
    found.wrong_count += found.replayed.lopsided_count - len(found.replayed.lopsided)
    rebuilt_hash, kept_hash = hashlib.sha256(), hashlib.sha256()
    balances = found.replayed.balances
    kept = dict(session.connection().execute(sa.select(col(LedgerAccount.code), col(LedgerAccount.balance_fen))).all())
    for code in sorted({*balances, *kept}):  # here, not by the database: collations differ
        _one(found, rebuilt_hash, kept_hash, "account", code, (balances.get(code, 0),), _of(kept.get(code)))
    found.accounts = len(kept)
    caps = rebuild_caps(session, found.replayed)
    counters = {row.code: (row.used_fen, row.held_fen) for row in session.exec(select(CapCounter))}
    for code in sorted({*caps, *counters}):
        _one(found, rebuilt_hash, kept_hash, "cap", code, tuple(caps.get(code, (0, 0))), counters.get(code))
    found.caps = len(counters)
    found.sha256, found.kept_sha256 = rebuilt_hash.hexdigest(), kept_hash.hexdigest()
    return found


def compare_all(session: Session) -> Compared:
    """`compare`, and what was charged against the usage that it is charged for."""
    found = compare(session)
    check_metered(session, found.replayed.charged, found.note)
    return found


def _of(fen: int | None) -> tuple[int, ...] | None:
    return None if fen is None else (fen,)


def _one(
    found: Compared, rebuilt_hash: Any, kept_hash: Any, what: str, code: str, rebuilt: tuple[int, ...],
    kept: tuple[int, ...] | None,
) -> None:  # fmt: skip
    rebuilt_hash.update(("\t".join([code, *map(str, rebuilt)]) + "\n").encode())
    if kept is not None:
        kept_hash.update(("\t".join([code, *map(str, kept)]) + "\n").encode())
    if kept != rebuilt:
        found.note(what=what, of=code, kept=list(kept or ()), rebuilt=list(rebuilt))


def rebuild_caps(session: Session, replayed: Replayed) -> Counters:
    """Every cap counter as the entries have it."""
    counters: Counters = defaultdict(lambda: [0, 0])
    held = _held_by_reservation(session, replayed)
    rejected = _rejected(session)
    of_voucher: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in _stream(session, Reservation, Reservation.id, Reservation.voucher_id, Reservation.subscription_id):
        reservation, voucher, contract = row
        charged = replayed.charged.get(accounts.used(reservation), 0)
        _add(counters[accounts.cap_contract(contract)], charged, held[reservation])
        _add(of_voucher[voucher], charged - rejected[reservation], held[reservation])
    names = (Voucher.id, Voucher.cap_code, Voucher.pool_code)
    for voucher, cap_code, pool_code in _stream(session, Voucher, *names):
        if not cap_code:
            continue  # proposed only: nothing is held for it
        used, idle = of_voucher[voucher]
        idle += replayed.balances.get(accounts.available(voucher), 0)
        for code in (cap_code, pool_code):
            _add(counters[code], used, idle)
    return dict(counters)


def _add(counter: list[int], used: int, held: int) -> None:
    counter[0] += used
    counter[1] += held


def _held_by_reservation(session: Session, replayed: Replayed) -> dict[str, int]:
    """What a reservation and its leases hold."""
    held: dict[str, int] = defaultdict(int)
    for code, fen in replayed.balances.items():
        if code.startswith("Q.resv["):
            held[code[7:-1]] += fen
    for lease, reservation in _stream(session, LeaseRow, LeaseRow.id, LeaseRow.reservation_id):
        fen = replayed.balances.get(accounts.leased(lease), 0)
        if fen:
            held[reservation] += fen
    return held


def _rejected(session: Session) -> dict[str, int]:
    """Fen of a reservation's charges that were finally rejected (P12): back in the pool."""
    found: dict[str, int] = defaultdict(int)
    lines = dict(_stream(session, ClaimLine, ClaimLine.id, ClaimLine.reservation_id))
    query = (
        sa.select(col(LedgerTransfer.event_key), col(LedgerEntry.amount_fen))
        .join(LedgerEntry, col(LedgerEntry.transfer_id) == col(LedgerTransfer.id))
        .where(col(LedgerTransfer.kind) == "P12", col(LedgerEntry.account).startswith("Q.unissued["))
    )
    for event, fen in session.connection().execute(query):
        found[lines[event.rpartition(":")[2]]] += fen
    return found


def _stream(session: Session, table: Any, *columns: Any) -> Iterator[Any]:
    """Those columns of every row, in portions by id."""
    after = ""
    while True:
        query = sa.select(*columns).where(table.id > after).order_by(table.id).limit(CHUNK)
        rows = session.connection().execute(query).all()
        for row in rows:
            yield tuple(row)
        if len(rows) < CHUNK:
            return
        after = rows[-1][0]


# --- the record -------------------------------------------------------------------------------------------------------


def check_books(engine: Engine, clock: Any = now_ms) -> LedgerCheck:
    """Rebuild, compare with what is kept and with the usage, record; tell every operator organisation a difference."""
    began = time.monotonic()
    with snapshot(engine) as session:
        found = compare_all(session)
    row = LedgerCheck(
        at_ms=clock(),
        sound=found.sound,
        transfers=found.replayed.transfers,
        entries=found.replayed.entries,
        accounts=found.accounts,
        caps=found.caps,
        last_transfer=found.replayed.last_transfer,
        sha256=found.sha256,
        kept_sha256=found.kept_sha256,
        wrong_count=found.wrong_count,
        wrong=found.wrong,
        took_ms=int((time.monotonic() - began) * 1000),
    )
    with transaction(engine) as session:
        session.add(row)
        if not row.sound:
            first = ", ".join(str(each["of"]) for each in found.wrong[:5])
            notify_operators(
                session,
                "LEDGER_UNSOUND",
                zh=f"账本核对不符 {found.wrong_count} 处: {first}",
                en=f"{found.wrong_count} balances, caps or meters are not what the entries and the usage give: {first}",
                link="/city/ledger",
            )
    return row


def list_checks(session: Session, limit: int = 30) -> list[LedgerCheck]:
    """Newest first."""
    return list(session.exec(select(LedgerCheck).order_by(col(LedgerCheck.id).desc()).limit(limit)))


def is_check_due(engine: Engine, at_ms: int) -> bool:
    """Whether nothing was checked yet on this policy day, and there is something to check."""
    with reading(engine) as session:
        last = list_checks(session, 1)
        if last:
            return policy_date(last[0].at_ms) < policy_date(at_ms)
        return session.exec(select(LedgerTransfer.id).limit(1)).first() is not None
