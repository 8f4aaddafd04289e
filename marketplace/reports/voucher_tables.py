"""Reports on programmes and vouchers: where each fen of the pool and of each voucher is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from marketplace.ledger import accounts
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Claimed, Facts
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Programme, Voucher
from marketplace.vouchers.tranches import decide_waiting
from marketplace.vouchers.versions import RUNS

_STATES = {"load": "draft", "activate": "active", "freeze": "frozen", "unfreeze": "active", "close": "closed",
           "audit": "audited"}  # fmt: skip


def _position(facts: Facts) -> dict[str, dict[str, int]]:
    """Issued voucher → where its face is, in fen."""
    found = {
        key: {"available": facts.balances[accounts.available(key)], "reserved": 0, "leased": 0, "used": 0}
        for key in facts.vouchers
        if ("P2", accounts.available(key)) in facts.flows
    }
    for key, row in facts.reservations.items():
        if where := found.get(row.voucher_id):
            where["reserved"] += facts.balances[accounts.reserved(key)]
            where["leased"] += facts.leased[key]
            where["used"] += facts.balances[accounts.used(key)]
    return found


def full_positions(facts: Facts) -> Iterator[tuple[Voucher, dict[str, int]]]:
    """Each issued voucher with all parts of its face; what is nowhere else went back to the pool."""
    for key, where in _position(facts).items():
        row, claimed = facts.vouchers[key], facts.claimed.get(key, Claimed())
        where |= {"batched": claimed.batched, "paid": claimed.paid, "clawed": claimed.clawed}
        where["returned"] = row.face_fen - sum(where.values())
        yield row, where


_PARTS = ("available", "reserved", "leased", "used", "batched", "paid", "clawed", "returned")
_PART_COLUMNS = """
available_fen fen 可用 | available
reserved_fen fen 已预留 | reserved
leased_fen fen 节点持有 | held by nodes
used_fen fen 已用未申报 | used, not claimed
batched_fen fen 申报中 | in claim batches
paid_fen fen 已付 | paid
clawed_fen fen 已追回 | clawed back
returned_fen fen 已回池 | returned to the pool
"""


def _pool(facts: Facts) -> Iterator[Row]:
    sums: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("issued", "vouchers", *_PARTS), 0))
    for row, where in full_positions(facts):
        of = sums[row.programme_id]
        of["issued"] += row.face_fen
        of["vouchers"] += 1
        for part in _PARTS:
            of[part] += where[part]
    history = facts.events_of("programme.")
    approved = approved_tranches(facts)
    for key, programme in facts.programmes.items():
        of, auth = sums[key], -facts.balances[accounts.auth(key)]
        unissued = facts.balances[accounts.unissued(key)]
        state = next((_STATES[e.action[10:]] for e in reversed(history[key]) if e.action[10:] in _STATES), "")
        conserved = auth == unissued + of["issued"] - of["returned"]
        yield (programme.code, programme.version, programme.title_zh, programme.is_demo, state, auth, unissued,
               of["issued"], of["vouchers"], *(of[part] for part in _PARTS), conserved,
               _waiting_fen(programme, approved) if state in RUNS else 0)  # fmt: skip


def approved_tranches(facts: Facts) -> dict[str, dict[str, int]]:
    """Programme's code → tranche → the most fen that two persons had approved by then, in whichever version."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for event in facts.events("programme.approve_tranche"):
        of, tranche, fen = found[event.details["code"]], event.details["tranche"], event.details["fen"]
        of[tranche] = max(fen, of.get(tranche, 0))
    return found


def _waiting_fen(programme: Programme, approved: Mapping[str, Mapping[str, int]]) -> int:
    rules = rules_of(programme)
    waits = decide_waiting(rules, approved.get(programme.code, {}))
    return sum(tranche.fen for tranche in rules.tranches if tranche.code in waits)


POOL = Report(
    "pool-position",
    "资金池头寸",
    "Pool position",
    columns(
        """
programme text 券项目 | programme
version integer 版本 | version
title text 名称 | title
demonstration flag 演示 | demonstration
state text 状态 | state
authorised_fen fen 批次拨入 | authorised
unissued_fen fen 未发放 | not issued
issued_fen fen 已发放 | issued
vouchers integer 券数 | vouchers
"""
        + _PART_COLUMNS
        + """
conserved flag 守恒 | conserved
waiting_fen fen 待批批次 | tranches not approved yet
"""
    ),
    _pool,
)


def _state(events: list[Any], where: dict[str, int]) -> str:
    """What the audit events and the ledger say; no status column is read."""
    last = next((e.action for e in reversed(events) if e.action in _VOUCHER), "voucher.issue")
    if last not in _ENDS and not (where["available"] or where["reserved"] or where["leased"]):
        return "exhausted"
    return _VOUCHER[last]


_VOUCHER = {"voucher.issue": "active", "voucher.resume": "active", "voucher.suspend": "suspended",
            "voucher.expire": "expired", "voucher.revoke": "revoked", "voucher.close": "closed"}  # fmt: skip
_ENDS = ("voucher.expire", "voucher.revoke", "voucher.close")


def _register(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("voucher.")
    for row, where in full_positions(facts):
        events = history[row.id]
        by = {event.action: event.actor for event in events}
        trail = " ; ".join(f"{event.at_ms} {event.action[8:]} {event.actor}" for event in events)
        yield (row.id, facts.programmes[row.programme_id].code, row.organisation_id, facts.name(row.organisation_id),
               facts.uscc(row.organisation_id), row.application_id, _state(events, where), row.issued_at_ms, row.use_by,
               row.redeem_by, by.get("voucher.propose", ""), by.get("voucher.issue", ""), row.face_fen,
               *(where[part] for part in _PARTS), trail)  # fmt: skip


REGISTER = Report(
    "voucher-register",
    "券台账 (含历史)",
    "Voucher register with history",
    columns(
        """
voucher text 券 | voucher
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
uscc text 统一社会信用代码 | USCC
application text 申请 | application
state text 状态 | state
issued_at instant 发放时间 | issued at
use_by day 使用截止 | use by
redeem_by day 兑付截止 | redeem by
proposed_by text 提出人 | proposed by
approved_by text 复核人 | approved by
face_fen fen 面值 | face value
"""
        + _PART_COLUMNS
        + """
history text 历史 (毫秒 动作 操作人) | history (ms, action, actor)
"""
    ),
    _register,
)
