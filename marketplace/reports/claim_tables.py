"""Reports on claims: batches down to the usage records, corrections and overrides, clawbacks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from marketplace.claims.tables import ClaimBatch, ClaimLine, Clawback, Correction, Invoice
from marketplace.organisations.tables import AuditEvent
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import CHUNK, Facts
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import Application, CheckOverride


def _claims(facts: Facts) -> Iterator[Row]:
    """Usage → charge → invoice → payment, from the frozen documents; a line that came back says so."""
    history, batches = facts.events_of("claim."), facts.by_id(ClaimBatch)
    invoices: dict[str, list[str]] = defaultdict(list)
    for invoice in facts.by_id(Invoice).values():
        invoices[invoice.subscription_id].append(invoice.number)
    for key, batch in batches.items():
        if batch.programme_id not in facts.programmes:
            continue
        events = history[key]
        frozen = next((event for event in events if event.action == "claim.freeze"), None)
        if frozen is None:
            continue
        document = json.loads(facts.blobs.path(frozen.details["sha256"]).read_bytes())
        step, payment, states = standing_of(events)
        for line in document["lines"]:
            state = states.get(line["line"], states[""])
            head = (key, document["programme"]["code"], step, frozen.details["sha256"], line["line"], state,
                    line["enterprise"]["id"], line["enterprise"]["name_zh"], line["enterprise"]["uscc"],
                    line["provider"]["id"], line["contract"], line["voucher"])  # fmt: skip
            backing = [each["number"] for each in line.get("invoices", ())] or invoices[line["contract"]]
            tail = (" ".join(sorted(backing)), payment.get("reference", ""), payment.get("paid_on"))
            for transfer in line["transfers"]:
                charge = (transfer["id"], transfer["kind"], transfer["occurred_at_ms"])
                first = (transfer["gross_fen"], transfer["subsidy_fen"])  # once a charge, so that columns sum up
                for usage_id, micro in _records(facts, transfer):
                    yield (*head, usage_id, micro, *charge, *first, *tail)
                    first = (0, 0)


def standing_of(events: list[AuditEvent]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The batch's last step, its payment, and the state of each line ("": of all others)."""
    step, payment, states = "", {}, {"": "in_batch"}
    for event in events:
        action = event.action.removeprefix("claim.")
        if action in ("line.return", "line.reject"):
            states[event.details["line"]] = "returned" if action == "line.return" else "rejected"
            continue
        step = action
        if action in ("pay", "unpay"):
            payment = event.details if action == "pay" else {}
        if action == "return":
            states[""] = "returned"
        elif action == "confirm-payment":
            states[""] = "accepted"
    return step, payment, states


def _records(facts: Facts, transfer: dict[str, Any]) -> Iterator[tuple[str, int | None]]:
    """The usage that a charge carries, or that a correction takes back."""
    query = sa.select(col(Usage.usage_id), col(Usage.amount_micro)).order_by(col(Usage.usage_id))
    if transfer["kind"] == "P13":
        taken = sa.select(col(Correction.usage_id)).where(col(Correction.id) == transfer["event"][4:])
        query = query.where(col(Usage.usage_id).in_(taken))
    else:
        query = query.where(col(Usage.transfer_id) == transfer["id"])
    empty = True
    for usage_id, micro in facts.session.connection().execute(query, execution_options={"yield_per": CHUNK}):
        empty = False
        yield usage_id, -micro if transfer["kind"] == "P13" else micro
    if empty:
        yield "", None


CLAIMS = Report(
    "claim-batch",
    "申报批次 (用量 → 扣费 → 发票 → 付款)",
    "Claim batches (usage → charge → invoice → payment)",
    columns("""
batch text 批次 | batch
programme text 券项目 | programme
step text 批次进度 | last step
sha256 text 冻结文件 | frozen document
line text 明细 | line
line_state text 明细状态 | state of the line
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
uscc text 统一社会信用代码 | USCC
provider text 供应商编号 | provider id
contract text 合同 | contract
voucher text 券 | voucher
usage_id text 用量编号 | usage id
amount_micro micro_fen 用量金额 | amount of the record
transfer integer 入账 | transfer
kind text 类别 | kind
occurred_at instant 发生 | occurred at
gross_fen fen 扣费总额 (每笔一次) | gross, once a charge
subsidy_fen fen 补贴 (每笔一次) | subsidy, once a charge
invoices text 发票 | invoices
payment text 付款凭证 | payment
paid_on day 付款日期 | paid on
"""),
    _claims,
)


def _of_programme(facts: Facts, voucher_id: str) -> bool:
    return not facts.programme_id or voucher_id in facts.vouchers


def _corrections(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("correction.")
    for key, row in facts.by_id(Correction).items():
        usage = facts.session.get(Usage, row.usage_id)
        reservation = usage.reservation_id if usage else ""
        if facts.programme_id and reservation not in facts.reservations:
            continue
        events = {event.action[11:]: event for event in history[key]}
        proposed, posted = events.get("propose"), events.get("post")
        decided = posted or events.get("decline")
        state = "posted" if posted else "declined" if decided else "proposed"
        amounts = (posted.details["gross_fen"], posted.details["subsidy_fen"]) if posted else (None, None)
        yield ("correction", key, row.usage_id, "", "", "", row.organisation_id, facts.name(row.organisation_id),
               state, row.reason, row.proposed_by, proposed.at_ms if proposed else row.created_at_ms,
               decided.actor if decided else "", decided.at_ms if decided else None, *amounts,
               row.transfer_id if posted else None)  # fmt: skip


_DECIDED = {"application.override-approve": "approved", "application.override-decline": "declined"}


def _overrides(facts: Facts) -> Iterator[Row]:
    """Failed checks that one person proposed to let pass, and what the other made of it by then."""
    decided = {event.details["override"]: event for event in facts.events("application.") if event.action in _DECIDED}
    applications = facts.by_id(Application)
    for key, row in facts.by_id(CheckOverride).items():
        of = applications[row.application_id]
        if of.programme_id not in facts.programmes:
            continue
        event = decided.get(key)
        yield ("override", key, "", of.id, row.code, row.failed_reason, of.organisation_id,
               facts.name(of.organisation_id), _DECIDED[event.action] if event else "proposed", row.reason,
               row.proposed_by, row.created_at_ms, event.actor if event else "", event.at_ms if event else None,
               None, None, None)  # fmt: skip


def _by_two(facts: Facts) -> Iterator[Row]:
    yield from _corrections(facts)
    yield from _overrides(facts)


CORRECTIONS = Report(
    "corrections",
    "更正与放行 (双人复核)",
    "Corrections and overrides (two approvals)",
    columns("""
kind text 类别 | kind
id text 编号 | id
usage_id text 用量编号 (更正) | usage id (correction)
application text 申请 (放行) | application (override)
check text 放行的核验 | check let pass
failed_reason text 核验未通过的原因 | why the check failed
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
state text 状态 | state
reason text 原因 | reason
proposed_by text 提出人 | proposed by
proposed_at instant 提出时间 | proposed at
decided_by text 复核人 | decided by
decided_at instant 复核时间 | decided at
gross_fen fen 冲回总额 | gross taken back
subsidy_fen fen 冲回补贴 | subsidy taken back
transfer integer 入账 | transfer
"""),
    _by_two,
)
_CLAWBACK = {"open": "opened", "confirm": "confirmed", "drop": "dropped", "demand": "demanded", "recover": "recovered",
             "write-off": "written_off"}  # fmt: skip


def _clawbacks(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("clawback.")
    for key, row in facts.by_id(Clawback).items():
        line = facts.session.get_one(ClaimLine, row.line_id)
        if not _of_programme(facts, line.voucher_id):
            continue
        events = history[key]
        state = next((_CLAWBACK[e.action[9:]] for e in reversed(events) if e.action[9:] in _CLAWBACK), "opened")
        by = {event.action[9:]: event.actor for event in events}
        owed = row.amount_fen if state in ("confirmed", "demanded") else 0
        trail = " ; ".join(f"{event.at_ms} {event.action[9:]} {event.actor}" for event in events)
        yield (key, line.batch_id, row.line_id, line.voucher_id, row.organisation_id, facts.name(row.organisation_id),
               state, row.reason, row.amount_fen, owed, by.get("open", row.opened_by), by.get("confirm", ""),
               trail)  # fmt: skip


CLAWBACKS = Report(
    "clawback-register",
    "追回台账",
    "Clawback register",
    columns("""
clawback text 追回 | clawback
batch text 批次 | batch
line text 明细 | line
voucher text 券 | voucher
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
state text 状态 | state
reason text 原因 | reason
amount_fen fen 金额 | amount
owed_fen fen 尚欠 | still owed
opened_by text 发起人 | opened by
confirmed_by text 复核人 | confirmed by
history text 历史 (毫秒 动作 操作人) | history (ms, action, actor)
"""),
    _clawbacks,
)
