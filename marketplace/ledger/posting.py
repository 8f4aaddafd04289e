"""Posting: the only way into the ledger. Transfers balance in each ledger, and are posted once per event.

`post_all` inserts any number of transfers and touches each account's balance once, in the order of the codes, so that
writers on PostgreSQL queue instead of deadlocking. Floors are the database's: `BALANCE_TOO_LOW` is a CHECK that spoke.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Insert, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select

from marketplace.clock import now_ms
from marketplace.ledger.accounts import has_floor, ledger_of
from marketplace.ledger.tables import LedgerAccount, LedgerEntry, LedgerTransfer
from model_store.errors import Broken, Conflict

MAX_FEN = 10**15  # 10 trillion yuan: a transfer past it is a mistake, and sums stay far inside 64 bits
QUERY_CHUNK = 5_000  # bound parameters of one statement, well under what SQLite and PostgreSQL take


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `amount_fen` into (positive) or out of (negative) an account."""

    account: str
    amount_fen: int


@dataclass(frozen=True, slots=True)
class Posting:
    """One event's transfer, not yet in the database. `event_key` names the event for ever."""

    kind: str
    event_key: str
    entries: tuple[Entry, ...]
    occurred_at_ms: int
    memo: str = ""


def insert_ignoring(session: Session, table: type[SQLModel]) -> Insert:
    """`INSERT … ON CONFLICT DO NOTHING` of the session's dialect."""
    target: Table = table.__table__  # type: ignore[attr-defined]
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(target).on_conflict_do_nothing()
    return sqlite.insert(target).on_conflict_do_nothing()


def check_entries(kind: str, entries: Sequence[Entry]) -> None:
    """`ValueError` unless the lines are integers that sum to zero in Q and in M separately, none of them zero."""
    sums: dict[str, int] = defaultdict(int)
    for entry in entries:
        amount = entry.amount_fen
        if type(amount) is not int or amount == 0 or abs(amount) > MAX_FEN:
            raise ValueError(f"{kind}: not an amount in fen: {amount!r} for {entry.account}")
        sums[ledger_of(entry.account)] += amount
    if not entries or any(sums.values()):
        raise ValueError(f"{kind}: entries must sum to zero in each ledger, not {dict(sums)}")


def post(
    session: Session, kind: str, event_key: str, entries: Sequence[Entry], occurred_at_ms: int, memo: str = ""
) -> LedgerTransfer:
    """Post one transfer; the same event posted again answers the transfer that stands.

    Raises `ValueError` for entries that do not balance, `Conflict` BALANCE_TOO_LOW where an account would go below its
    floor, `Broken` EVENT_KEY_REUSED where the key stands with other entries.
    """
    return post_all(session, [Posting(kind, event_key, tuple(entries), occurred_at_ms, memo)])[0]


def post_all(session: Session, postings: Sequence[Posting]) -> list[LedgerTransfer]:
    """Post many transfers with one balance update per account; see `post`. Answers them in the order given."""
    for posting in postings:
        check_entries(posting.kind, posting.entries)
    session.flush()
    transfers: list[LedgerTransfer] = []
    lines: list[tuple[LedgerTransfer, tuple[Entry, ...]]] = []
    for posting in postings:
        transfer, is_new = _claim_event(session, posting)
        transfers.append(transfer)
        if is_new:
            lines.append((transfer, posting.entries))
    if lines:
        _write(session, lines)
    return transfers


def balance(session: Session, code: str, *, lock: bool = False) -> int:
    """The account's balance in fen, 0 where nothing was ever posted. `lock` holds it until the transaction ends."""
    query = select(LedgerAccount.balance_fen).where(LedgerAccount.code == code)
    # key_share: entries that refer to the account may be written meanwhile, and wait for its balance in code order
    return session.exec(query.with_for_update(key_share=True) if lock else query).first() or 0


def lock_accounts(session: Session, codes: Iterable[str]) -> None:
    """Those of the accounts that stand, locked in the order of their codes until the transaction ends."""
    query = select(LedgerAccount.code).where(col(LedgerAccount.code).in_(sorted(set(codes))))
    session.exec(query.order_by(LedgerAccount.code).with_for_update(key_share=True)).all()


def balances(session: Session, codes: Iterable[str]) -> dict[str, int]:
    """Balances of many accounts, 0 where nothing was ever posted."""
    found = dict.fromkeys(codes, 0)
    wanted = list(found)
    for start in range(0, len(wanted), QUERY_CHUNK):
        query = select(LedgerAccount.code, LedgerAccount.balance_fen)
        for code, fen in session.exec(query.where(col(LedgerAccount.code).in_(wanted[start : start + QUERY_CHUNK]))):
            found[code] = fen
    return found


def _claim_event(session: Session, posting: Posting) -> tuple[LedgerTransfer, bool]:
    """The transfer row of an event, and whether this call made it. The unique key decides between racing writers."""
    values = {
        "kind": posting.kind,
        "event_key": posting.event_key,
        "occurred_at_ms": posting.occurred_at_ms,
        "posted_at_ms": now_ms(),
        "memo": posting.memo,
    }
    table: Any = LedgerTransfer
    statement: Any = insert_ignoring(session, LedgerTransfer).values(**values).returning(table.__table__.c.id)
    made = session.connection().execute(statement).scalar()
    if made is not None:
        return session.get_one(LedgerTransfer, made), True
    standing = session.exec(select(LedgerTransfer).where(LedgerTransfer.event_key == posting.event_key)).one()
    if standing.kind != posting.kind or entries_of(session, standing) != list(posting.entries):
        raise Broken(
            "EVENT_KEY_REUSED",
            zh=f"账本事件 {posting.event_key} 已以不同内容入账",
            en=f"the ledger event {posting.event_key} already stands with other entries",
            remedy_zh="请把请求编号告诉平台运营方",
            remedy_en="tell the operator the request id",
        )
    return standing, False


def entries_of(session: Session, transfer: LedgerTransfer) -> list[Entry]:
    """The lines of a transfer, in their order."""
    query = select(LedgerEntry).where(LedgerEntry.transfer_id == transfer.id).order_by(col(LedgerEntry.line))
    return [Entry(row.account, row.amount_fen) for row in session.exec(query)]


def _write(session: Session, lines: list[tuple[LedgerTransfer, tuple[Entry, ...]]]) -> None:
    """Accounts first (entries refer to them), then entries, then one balance change per account, in code order."""
    changes: dict[str, int] = defaultdict(int)
    rows: list[dict[str, Any]] = []
    for transfer, entries in lines:
        for line, entry in enumerate(entries, start=1):
            changes[entry.account] += entry.amount_fen
            rows.append(
                {"transfer_id": transfer.id, "line": line, "account": entry.account, "amount_fen": entry.amount_fen}
            )
    connection = session.connection()
    codes = sorted(changes)
    accounts = [
        {"code": code, "ledger": ledger_of(code), "floor_zero": int(has_floor(code)), "balance_fen": 0}
        for code in codes
    ]
    connection.execute(insert_ignoring(session, LedgerAccount), accounts)
    entry_table: Table = LedgerEntry.__table__  # type: ignore[attr-defined]
    connection.execute(entry_table.insert(), rows)
    table: Table = LedgerAccount.__table__  # type: ignore[attr-defined]
    change = (
        table.update()
        .where(table.c.code == bindparam("of_code"))
        .values(balance_fen=table.c.balance_fen + bindparam("by_fen"))
    )
    try:
        connection.execute(change, [{"of_code": code, "by_fen": changes[code]} for code in codes if changes[code]])
    except IntegrityError as error:
        raise Conflict(
            "BALANCE_TOO_LOW",
            zh="账户余额不足, 本次入账已全部撤销",
            en="an account would go below its floor; nothing was posted",
            remedy_zh="请刷新后按当前余额重试",
            remedy_en="look at the present balance and try again",
            details={"accounts": [code for code in codes if changes[code] < 0 and has_floor(code)][:10]},
        ) from error
    # balances changed behind the session's back: rows it holds must be read again
    for row in list(session.identity_map.values()):
        if isinstance(row, LedgerAccount) and row.code in changes:
            session.expire(row)
