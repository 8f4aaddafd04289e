"""Reports on programmes, applications, vouchers, caps and contracts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from marketplace.ledger import accounts
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Claimed, Facts
from marketplace.vouchers.tables import Application, Voucher

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


def _full(facts: Facts) -> Iterator[tuple[Voucher, dict[str, int]]]:
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
    for row, where in _full(facts):
        of = sums[row.programme_id]
        of["issued"] += row.face_fen
        of["vouchers"] += 1
        for part in _PARTS:
            of[part] += where[part]
    history = facts.events_of("programme.")
    for key, programme in facts.programmes.items():
        of, auth = sums[key], -facts.balances[accounts.auth(key)]
        unissued = facts.balances[accounts.unissued(key)]
        state = next((_STATES[e.action[10:]] for e in reversed(history[key]) if e.action[10:] in _STATES), "")
        conserved = auth == unissued + of["issued"] - of["returned"]
        yield (programme.code, programme.version, programme.title_zh, programme.is_demo, state, auth, unissued,
               of["issued"], of["vouchers"], *(of[part] for part in _PARTS), conserved)  # fmt: skip


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
"""
    ),
    _pool,
)


def _state(events: list[Any], where: dict[str, int]) -> str:
    """What the audit events and the ledger say; no status column is read."""
    last = next((e.action for e in reversed(events) if e.action in _VOUCHER), "voucher.issue")
    if last != "voucher.expire" and not (where["available"] or where["reserved"] or where["leased"]):
        return "exhausted"
    return _VOUCHER[last]


_VOUCHER = {"voucher.issue": "active", "voucher.resume": "active", "voucher.suspend": "suspended",
            "voucher.expire": "expired"}  # fmt: skip


def _register(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("voucher.")
    for row, where in _full(facts):
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


def _dossier(facts: Facts) -> Iterator[Row]:
    rows = facts.by_id(Application)
    for event in facts.events("application."):
        row = rows.get(event.subject)
        if row is None or row.programme_id not in facts.programmes:
            continue
        failed = event.details.get("failed")
        yield (row.id, facts.programmes[row.programme_id].code, row.organisation_id, facts.name(row.organisation_id),
               facts.uscc(row.organisation_id), event.at_ms, event.action[12:], event.actor,
               event.details.get("requested_fen"), None if failed is None else " ".join(failed),
               event.details.get("code", ""), event.details.get("sha256", ""), event.details.get("check", ""),
               event.details.get("note", ""))  # fmt: skip


DOSSIER = Report(
    "application-dossier",
    "申请与资格核验卷宗",
    "Application and eligibility dossier",
    columns(
        """
application text 申请 | application
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
uscc text 统一社会信用代码 | USCC
at instant 时间 | at
step text 步骤 | step
by text 操作人 | by
requested_fen fen 申请金额 | requested
failed_checks text 未通过的核验 | failed checks
evidence text 材料 | evidence
evidence_sha256 text 材料文件 SHA-256 | SHA-256 of the file
override text 放行的核验 (双人) | check let pass (two persons)
note text 说明 | note
"""
    ),
    _dossier,
)


def _notices(facts: Facts) -> Iterator[Row]:
    rows = facts.by_id(Application)
    for event in facts.events("application."):
        row = rows.get(event.subject)
        if row is None or row.programme_id not in facts.programmes or event.action[12:] not in _NOTICE_STEPS:
            continue
        yield ("application", row.id, facts.programmes[row.programme_id].code, row.organisation_id,
               facts.name(row.organisation_id), facts.uscc(row.organisation_id), event.action[12:], event.at_ms,
               None, event.details.get("note", ""))  # fmt: skip
    batches = {batch: (code, total) for batch, code, total in _frozen(facts)}
    for event in facts.events("claim."):
        if event.action[6:] in ("publish", "return", "approve") and event.subject in batches:
            code, total = batches[event.subject]
            yield ("claim", event.subject, code, "", "", "", event.action[6:], event.at_ms, total,
                   event.details.get("note", ""))  # fmt: skip


def _frozen(facts: Facts) -> Iterator[tuple[str, str, int]]:
    """(batch, programme's code, fen) of each frozen batch."""
    from marketplace.claims.tables import ClaimBatch

    rows = facts.by_id(ClaimBatch)
    for event in facts.events("claim.freeze"):
        row = rows.get(event.subject)
        if row is not None and row.programme_id in facts.programmes:
            yield row.id, facts.programmes[row.programme_id].code, event.details["total_fen"]


_NOTICE_STEPS = ("publish", "object", "dismiss", "uphold", "confirm", "reject")
NOTICES = Report(
    "public-notice",
    "公示清单",
    "Public-notice list",
    columns(
        """
of text 类别 | of what
id text 编号 | id
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
uscc text 统一社会信用代码 | USCC
step text 步骤 | step
at instant 时间 | at
frozen_fen fen 冻结金额 | frozen amount
note text 说明 | note
"""
    ),
    _notices,
)


def _caps(facts: Facts) -> Iterator[Row]:
    found: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("issued", "returned", "spent", "vouchers"), 0)
    )
    of: dict[str, Voucher] = {}
    for row, where in _full(facts):
        cap = found[row.cap_code]
        cap["issued"] += row.face_fen
        cap["returned"] += where["returned"]
        cap["spent"] += sum(where[part] for part in ("used", "batched", "paid", "clawed"))
        cap["vouchers"] += 1
        standing = of.setdefault(row.cap_code, row)  # the newest version's limit is the one that holds
        if facts.programmes[row.programme_id].version >= facts.programmes[standing.programme_id].version:
            of[row.cap_code] = row
    for code, cap in sorted(found.items()):
        row = of[code]
        limit = facts.programmes[row.programme_id].document.get("cap_fen")
        held = cap["issued"] - cap["returned"] - cap["spent"]
        yield (code, facts.programmes[row.programme_id].code, row.organisation_id, facts.name(row.organisation_id),
               code.rpartition(",")[2].rstrip("]"), limit, cap["vouchers"], cap["issued"], cap["returned"],
               cap["spent"], held, None if limit is None else limit - cap["spent"] - held)  # fmt: skip


CAPS = Report(
    "cap-usage",
    "上限占用",
    "Cap usage",
    columns(
        """
cap text 上限账户 | cap
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
period text 期间 | period
limit_fen fen 上限 | limit
vouchers integer 券数 | vouchers
issued_fen fen 已发放 | issued
returned_fen fen 已回池 | returned
spent_fen fen 已使用 | spent
held_fen fen 占用 | held
room_fen fen 余量 | room
"""
    ),
    _caps,
)


def _contracts(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("subscription.")
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for charge in facts.charges():
        sums[charge.subscription][0] += charge.gross_fen
        sums[charge.subscription][1] += charge.subsidy_fen
    held: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for key, row in facts.reservations.items():
        held[row.subscription_id][0] += row.amount_fen
        held[row.subscription_id][1] += facts.balances[accounts.reserved(key)] + facts.leased[key]
    for key, contract in facts.subscriptions.items():
        if facts.programme_id and key not in held:
            continue
        events = history[key]
        foreseen = next((e.details["contract_fen"] for e in reversed(events) if "contract_fen" in e.details), None)
        ended = next((event.at_ms for event in events if event.action == "subscription.end"), None)
        gross, subsidy = sums[key]
        yield (key, contract.organisation_id, facts.name(contract.organisation_id), contract.provider_id,
               facts.name(contract.provider_id), contract.listing_id, contract.created_at_ms, ended, foreseen,
               *held[key], gross, subsidy, gross - subsidy)  # fmt: skip


CONTRACTS = Report(
    "contract-ledger",
    "合同台账",
    "Contract ledger",
    columns(
        """
contract text 合同 | contract
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
provider text 供应商编号 | provider id
provider_name text 供应商 | provider
listing text 商品 | listing
made_at instant 订立 | made at
ended_at instant 结束 | ended at
contract_fen fen 合同预计金额 | foreseen gross
reserved_total_fen fen 累计预留 | reserved in all
reserved_now_fen fen 现有预留 | reserved now
gross_fen fen 已计费 | charged gross
subsidy_fen fen 其中补贴 | of it subsidy
own_fen fen 企业自付 | own cost
"""
    ),
    _contracts,
)
