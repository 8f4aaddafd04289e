"""The report of findings: what runs found by then and what persons had made of it, from the two histories."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from marketplace.findings.tables import Finding, FindingContract, FindingDisposition, FindingSighting
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import CHUNK, Facts
from marketplace.usage.tables import Usage
from marketplace.vouchers.signals import TITLES, Code


def _findings(facts: Facts) -> Iterator[Row]:
    """Findings by id, then quarantined usage."""
    contracts, decided = _contracts(facts), _decided(facts)
    vouched = {row.subscription_id for row in facts.reservations.values()}
    for row, seen in _seen(facts):
        about = contracts[row.id]
        if facts.programme_id and (row.programme_id or facts.programme_id) != facts.programme_id:
            continue
        if facts.programme_id and not row.programme_id and vouched.isdisjoint(about):
            continue
        last, first = seen[-1], seen[0]
        evidence = next(each.evidence for each in reversed(seen) if each.evidence)
        steps = decided[row.id]
        zh, en = TITLES[Code(row.code)]
        yield (row.code, f"{zh} · {en}", row.id, last.severity, steps[-1].state if steps else "open",
               row.programme_id, row.organisation_id, facts.name(row.organisation_id), row.provider_id,
               " ".join(about), last.amount_fen, last.text_zh, last.text_en,
               json.dumps(evidence, ensure_ascii=False, sort_keys=True), first.at_ms, last.at_ms,
               " ; ".join(f"{each.at_ms} {each.state} {each.member_id}: {each.reason}" for each in steps),
               None)  # fmt: skip
    yield from _quarantined(facts, vouched)


def _seen(facts: Facts) -> Iterator[tuple[Finding, list[FindingSighting]]]:
    """Each finding with its sightings by then, oldest first."""
    query = (
        select(Finding, FindingSighting)
        .join(FindingSighting, col(FindingSighting.finding_id) == col(Finding.id))
        .where(col(FindingSighting.at_ms) <= facts.as_of_ms)
        .order_by(col(Finding.id), col(FindingSighting.id))
        .execution_options(yield_per=CHUNK)
    )
    for _, group in groupby(facts.session.exec(query), key=lambda pair: pair[0].id):
        pairs = list(group)
        yield pairs[0][0], [seen for _, seen in pairs]


def _contracts(facts: Facts) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    query = select(FindingContract).where(col(FindingContract.at_ms) <= facts.as_of_ms)
    for row in facts.session.exec(query.order_by(col(FindingContract.subscription_id))):
        found[row.finding_id].append(row.subscription_id)
    return found


def _decided(facts: Facts) -> dict[str, list[FindingDisposition]]:
    found: dict[str, list[FindingDisposition]] = defaultdict(list)
    query = select(FindingDisposition).where(col(FindingDisposition.at_ms) <= facts.as_of_ms)
    for row in facts.session.exec(query.order_by(col(FindingDisposition.id))):
        found[row.finding_id].append(row)
    return found


def _quarantined(facts: Facts, vouched: set[str]) -> Iterator[Row]:
    count = sa.func.count()
    usage = (col(Usage.organisation_id), col(Usage.provider_id), col(Usage.subscription_id), col(Usage.reason))
    query = (
        sa.select(*usage, count)
        .where(
            col(Usage.ingested_at_ms) <= facts.as_of_ms,
            col(Usage.occurred_at_ms) >= facts.from_ms,
            col(Usage.status) == "quarantined",
        )
        .group_by(*usage)
        .order_by(*usage)
    )
    rows: Any = facts.session.connection().execute(query, execution_options={"yield_per": CHUNK})
    for owner, provider, contract, reason, many in rows:
        if not facts.programme_id or contract in vouched:
            yield ("QUARANTINED_USAGE", "隔离的用量 · quarantined usage", "", "medium", "", "", owner,
                   facts.name(owner), provider, contract, None, reason, reason, "", None, None, "", many)  # fmt: skip


FINDINGS = Report(
    "findings",
    "关联方、重复与异常用券线索",
    "Related-party, duplicate and other findings",
    columns("""
code text 代码 | code
title text 名称 | title
finding text 线索编号 | finding
severity text 轻重 | severity
state text 处置 | disposition
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
provider text 供应商编号 | provider id
contracts text 合同 | contracts
amount_fen fen 涉及金额 | amount it is about
text_zh text 说明 (中文) | in Chinese
text_en text 说明 (英文) | in English
evidence text 证据 | evidence
first_seen instant 首次发现 | first seen
last_seen instant 最近发现 | last seen
dispositions text 处置历史 (毫秒 结论 经办人: 原因) | history (ms, state, who: reason)
count integer 数量 (隔离的用量) | count (of quarantined usage)
"""),
    _findings,
)
