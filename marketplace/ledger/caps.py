"""Cap counters with holds: `used + held <= limit`, by the database's CHECK and by a refusal before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlmodel import Session, col, select

from marketplace.ledger.posting import insert_ignoring
from marketplace.ledger.tables import CapCounter
from model_store.errors import Conflict


def open_cap(session: Session, code: str, limit_fen: int) -> CapCounter:
    """The counter, made with this limit where there is none; locked until the transaction ends.

    A standing counter keeps its own limit and its own figures: a counter is never seeded again.
    """
    values: dict[str, Any] = {"code": code, "limit_fen": limit_fen, "used_fen": 0, "held_fen": 0}
    session.flush()
    session.connection().execute(insert_ignoring(session, CapCounter).values(**values))
    return session.exec(select(CapCounter).where(CapCounter.code == code).with_for_update()).one()


def opened(session: Session, prefix: str) -> list[CapCounter]:
    """Every counter whose code begins so, locked in the order of the codes."""
    query = select(CapCounter).where(col(CapCounter.code).startswith(prefix, autoescape=True))
    return list(session.exec(query.order_by(col(CapCounter.code)).with_for_update()))


def set_limit(session: Session, cap: CapCounter, limit_fen: int) -> CapCounter:
    """A new version's limit. Where more is held and used than it allows, that stays, and there is no room."""
    cap.limit_fen = max(limit_fen, cap.used_fen + cap.held_fen)
    session.add(cap)
    return cap


def lock_caps(session: Session, codes: Iterable[str]) -> None:
    """Those of the counters that stand, locked in the order of their codes until the transaction ends.

    A path that changes several of them, or one after it has posted, locks them all here first: see `vouchers.locks`.
    """
    session.flush()
    query = select(CapCounter).where(col(CapCounter.code).in_(sorted(set(codes)))).order_by(col(CapCounter.code))
    session.exec(query.with_for_update()).all()


def room(cap: CapCounter) -> int:
    """Fen that may still be held or used."""
    return cap.limit_fen - cap.used_fen - cap.held_fen


def hold(session: Session, cap: CapCounter, fen: int) -> None:
    """Set `fen` aside; `Conflict` CAP_REACHED with what is left."""
    if fen < 0:
        raise ValueError(f"a hold is not negative: {fen}")
    if fen > room(cap):
        raise Conflict(
            "CAP_REACHED",
            zh=f"超过上限: 还可占用 {room(cap)} 分, 需要 {fen} 分",
            en=f"over the cap: {room(cap)} fen are left, {fen} are needed",
            remedy_zh="请减少金额, 或等待占用释放",
            remedy_en="ask for less, or wait until something held is released",
            details={"cap": cap.code, "room_fen": room(cap)},
        )
    cap.held_fen += fen
    session.add(cap)


def release(session: Session, cap: CapCounter, fen: int) -> None:
    """Give back a hold that was not used."""
    if not 0 <= fen <= cap.held_fen:
        raise ValueError(f"{cap.code} holds {cap.held_fen} fen; {fen} cannot be released")
    cap.held_fen -= fen
    session.add(cap)


def use(session: Session, cap: CapCounter, fen: int) -> None:
    """Turn a hold into use."""
    release(session, cap, fen)
    cap.used_fen += fen


def take_back(session: Session, cap: CapCounter, fen: int) -> None:
    """Turn use into a hold again: what was charged was corrected, or finally rejected."""
    if not 0 <= fen <= cap.used_fen:
        raise ValueError(f"{cap.code} has {cap.used_fen} fen used; {fen} cannot be taken back")
    cap.used_fen -= fen
    cap.held_fen += fen
    session.add(cap)
