"""Tranches that wait for an approval of their own (`own_approval` in the file): which, and what they hold back.

An approval is of a tranche's code and of an amount, and holds for every version of the programme: they share the pool.
A version that makes the tranche larger asks anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlmodel import Session, col, select

from marketplace.ledger import accounts, caps
from marketplace.ledger.posting import balance
from marketplace.ledger.tables import CapCounter
from marketplace.vouchers.eligibility import Reason, decide_pool
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import conflict
from marketplace.vouchers.tables import Programme, TrancheApproval
from model_store.errors import Conflict


def decide_waiting(rules: ProgrammeFile, approved: Mapping[str, int]) -> list[str]:
    """The codes of the tranches that wait, in the file's order. `approved`: tranche → the most fen that two persons
    approved of it, in whichever version."""
    return [each.code for each in rules.tranches if each.own_approval and approved.get(each.code, -1) < each.fen]


def decide_held_back(rules: ProgrammeFile, waiting: Collection[str], taken: Mapping[str, int]) -> int:
    """The most fen that one tranche which waits could pay out, were it approved. `taken`: tranche → what all versions
    hold and have used of it; the pool bounds them together."""
    left = rules.pool_fen - sum(taken.values())
    rooms = [min(left, each.fen - taken.get(each.code, 0)) for each in rules.tranches if each.code in waiting]
    return max([0, *rooms])


def waiting(session: Session, code: str, rules: ProgrammeFile) -> list[str]:
    """The tranches of a programme in force that wait for their approval now."""
    if not any(each.own_approval for each in rules.tranches):
        return []
    query = select(TrancheApproval.tranche, TrancheApproval.fen).join(
        Programme, col(Programme.id) == col(TrancheApproval.programme_id)
    )
    approved: dict[str, int] = {}
    for tranche, fen in session.exec(query.where(Programme.code == code, TrancheApproval.state == "approved")):
        approved[tranche] = max(fen, approved.get(tranche, 0))
    return decide_waiting(rules, approved)


def held_back(session: Session, code: str, rules: ProgrammeFile) -> int:
    """`decide_held_back` as the counters stand; no lock."""
    codes = waiting(session, code, rules)
    if not codes:
        return 0
    prefix = accounts.caps_of_pool(code)
    query = select(CapCounter).where(col(CapCounter.code).startswith(prefix, autoescape=True))
    return decide_held_back(rules, codes, taken_of(code, session.exec(query).all()))


def hold_tranche(session: Session, programme: Programme, rules: ProgrammeFile, fen: int) -> str:
    """Hold the face in the first approved tranche with room for all of it; `Conflict` TRANCHE_WAITS, POOL_EXHAUSTED.

    The pool bounds all versions of the programme together; what an earlier one got back since it was closed is with
    that one, so the account is asked too.
    """
    counters = caps.opened(session, accounts.caps_of_pool(programme.code))
    taken = taken_of(programme.code, counters)
    waits = waiting(session, programme.code, rules)
    held_back = decide_held_back(rules, waits, taken)
    unissued = balance(session, accounts.unissued(programme.id), lock=True)
    if reason := decide_pool(fen, min(rules.pool_fen - sum(taken.values()), unissued), held_back).reason:
        raise waits_refusal(waits) if reason is Reason.TRANCHE_WAITS else conflict(reason)
    for tranche in rules.tranches:
        if tranche.code in waits:
            continue
        cap = caps.open_cap(session, accounts.cap_pool(programme.code, tranche.code), tranche.fen)
        if caps.room(cap) >= fen:
            caps.hold(session, cap, fen)
            return tranche.code
    raise waits_refusal(waits) if fen <= held_back else conflict(Reason.POOL_EXHAUSTED)


def taken_of(code: str, counters: Collection[CapCounter]) -> dict[str, int]:
    """Tranche → fen held and used, from the programme's counters."""
    start = len(accounts.caps_of_pool(code))
    return {cap.code[start:-1]: cap.used_fen + cap.held_fen for cap in counters}


def waits_refusal(codes: Collection[str]) -> Conflict:
    """TRANCHE_WAITS: what is left is in tranches that are not approved yet."""
    names = ", ".join(codes)
    return Conflict(
        str(Reason.TRANCHE_WAITS),
        zh=f"余额在尚未批准的批次中: {names}",
        en=f"what is left is in a tranche that waits for its approval: {names}",
        remedy_zh=f"请等待批次 {names} 获批, 或减少金额",
        remedy_en=f"wait until tranche {names} is approved, or ask for less",
        details={"tranches": list(codes)},
    )
