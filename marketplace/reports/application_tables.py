"""Reports on applications: every step of their dossiers, each check that was made, and what was on public notice."""

from __future__ import annotations

from collections.abc import Iterator

from marketplace.claims.tables import ClaimBatch
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts
from marketplace.vouchers.tables import Application


def _dossier(facts: Facts) -> Iterator[Row]:
    """A row a step; after the step `check` a row of each check then made (`checked`), with its result and time."""
    rows = facts.by_id(Application)
    for event in facts.events("application."):
        row = rows.get(event.subject)
        if row is None or row.programme_id not in facts.programmes:
            continue
        head = (row.id, facts.programmes[row.programme_id].code, row.organisation_id, facts.name(row.organisation_id),
                facts.uscc(row.organisation_id))  # fmt: skip
        failed = event.details.get("failed")
        yield (*head, event.at_ms, event.action[12:], event.actor, event.details.get("requested_fen"),
               None if failed is None else " ".join(failed), "", None, "", None, event.details.get("code", ""),
               event.details.get("sha256", ""), event.details.get("check", ""),
               event.details.get("note", ""))  # fmt: skip
        for check in event.details.get("checks", ()):  # since they are kept; earlier ones told only what failed
            yield (*head, check["at_ms"], "checked", event.actor, None, None, check["code"], check["passed"],
                   check["reason"], check["good_until_ms"], "", "", "", "")  # fmt: skip


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
check text 核验 | check
passed flag 通过 | passed
reason text 未通过的原因 | why it failed
good_until instant 核验有效至 | the check holds until
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
