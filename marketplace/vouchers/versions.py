"""Versions of one programme: one runs at a time, and pool and caps count what every version has committed.

The counters of pool and caps are keyed by the programme's code (`accounts.cap_pool`, `accounts.cap_enterprise`). A new
version takes over from one that is closed: it authorises its tranches less what is committed in them, and what the
earlier one did not issue is withdrawn, so that all versions together never authorise more than the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlmodel import Session, col, select

from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import Posting, balance, post_all
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.tables import Programme, Voucher
from marketplace.vouchers.tranches import waiting
from model_store.errors import Conflict

RUNS = ("active", "frozen")


def lock_versions(session: Session, code: str) -> list[Programme]:
    """Every version of a programme, locked in one order: two activations of one code follow each other."""
    query = select(Programme).where(Programme.code == code).order_by(col(Programme.id)).with_for_update()
    return list(session.exec(query.execution_options(populate_existing=True)))


def decide_alone(code: str, others: Iterable[tuple[int, str]]) -> None:
    """`others`: (version, state). `Conflict` PROGRAMME_VERSION_RUNS while another version is active or frozen."""
    running = [version for version, state in others if state in RUNS]
    if running:
        raise Conflict(
            "PROGRAMME_VERSION_RUNS",
            zh=f"“{code}”的第 {running[0]} 版仍在执行, 同一项目同时只能有一个版本",
            en=f"version {running[0]} of {code} still runs, and one version of a programme runs at a time",
            remedy_zh="请先关闭该版本; 其已发放的券仍可使用",
            remedy_en="close that version first; the vouchers that it issued stay usable",
            details={"code": code, "versions": running},
        )


def decide_fresh(rules: ProgrammeFile, committed: Mapping[str, int]) -> dict[str, int]:
    """Tranche → fen that it newly authorises. `committed`: tranche → what earlier versions have issued out of it.

    `Conflict` PROGRAMME_POOL_COMMITTED where that does not fit the tranche, or all of it with the tranches the pool.
    """
    gone = sum(fen for code, fen in committed.items() if code not in {tranche.code for tranche in rules.tranches})
    fresh = {tranche.code: tranche.fen - committed.get(tranche.code, 0) for tranche in rules.tranches}
    if min(fresh.values()) < 0 or sum(tranche.fen for tranche in rules.tranches) + gone > rules.pool_fen:
        raise Conflict(
            "PROGRAMME_POOL_COMMITTED",
            zh=f"以前的版本已占用 {sum(committed.values())} 分, 与本版批次合计超过资金池 {rules.pool_fen} 分或单个批次",
            en=f"earlier versions have committed {sum(committed.values())} fen, which with these tranches is more than "
            f"the pool of {rules.pool_fen} fen, or than one tranche",
            remedy_zh="请在新版本中保留已占用的批次并重新分配金额",
            remedy_en="keep those tranches in the new version with at least what is committed, and lower the others",
            field="tranches",
            details={"committed": dict(committed)},
        )
    return fresh


def take_over(session: Session, row: Programme, rules: ProgrammeFile, others: list[Programme], at_ms: int) -> None:
    """P1 for each tranche of a version that becomes active, but for those that wait (`tranches.waiting`); the
    limits of pool and tranches are its own from now on."""
    decide_alone(row.code, [(other.version, other.state) for other in others])
    _decide_period(session, row, rules, others)
    prefix = accounts.caps_of_pool(row.code)
    counters = caps.opened(session, prefix)
    fresh = decide_fresh(rules, {cap.code[len(prefix) : -1]: cap.used_fen + cap.held_fen for cap in counters})
    for tranche in rules.tranches:
        cap = caps.open_cap(session, accounts.cap_pool(row.code, tranche.code), tranche.fen)
        caps.set_limit(session, cap, tranche.fen)
    waits = waiting(session, row.code, rules)
    moves = withdrawals(session, others, row.id, at_ms)
    moves += [
        postings.p1_tranche_approved(row.id, code, fen, at_ms)
        for code, fen in fresh.items()
        if fen and code not in waits
    ]
    post_all(session, moves)


def withdrawals(session: Session, others: Iterable[Programme], successor: str, at_ms: int) -> list[Posting]:
    """P1 backwards for what closed versions have not issued. `successor`: what authorises it from now on, once each."""
    found = [(other.id, balance(session, accounts.unissued(other.id), lock=True)) for other in others]
    return [postings.p1_withdrawn(other, successor, unissued, at_ms) for other, unissued in found if unissued]


def _decide_period(session: Session, row: Programme, rules: ProgrammeFile, others: list[Programme]) -> None:
    """A cap for a year and one for the whole programme count in different counters: no version changes from one to the
    other once vouchers were issued, or an enterprise would begin anew. `Conflict` PROGRAMME_CAP_PERIOD."""
    differ = [other.id for other in others if other.document.get("cap_period") != rules.cap_period]
    query = select(Voucher.id).where(col(Voucher.programme_id).in_(differ), Voucher.cap_code != "")
    if session.exec(query.limit(1)).first() is not None:
        raise Conflict(
            "PROGRAMME_CAP_PERIOD",
            zh=f"“{row.code}”已按另一种上限期间发券, 新版本不能更改“cap_period”",
            en=f"{row.code} has issued vouchers under a cap of another period; a version does not change cap_period",
            remedy_zh="请在新版本中保留原来的上限期间",
            remedy_en="keep the period of the cap in the new version",
            field="cap_period",
        )
