"""Reports on the ledger and on what proves it: trial balance, returns to the pool, day roots; and findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import sqlalchemy as sa
from sqlmodel import col, select

from marketplace.claims.tables import Invoice
from marketplace.integrity.tables import DayRoot
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import CHUNK, Facts
from marketplace.usage.tables import Usage
from marketplace.vouchers.sale import are_related

ALIKE = 100  # so many calls of one enterprise with the same request and model are a finding


def _balance(facts: Facts) -> Iterator[Row]:
    """By kind of account, then each ledger's sum: zero where it balances."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    accounts: dict[str, set[str]] = defaultdict(set)
    for (_, account), (into, out) in facts.flows.items():
        kind = account.partition("[")[0]
        accounts[kind].add(account)
        for key in (kind, f"Σ{kind[0]}"):
            sums[key][0] += into
            sums[key][1] += out
    for key in sorted(sums, key=lambda each: (each.startswith("Σ"), each)):
        into, out = sums[key]
        total = key.startswith("Σ")
        yield (
            key,
            key[-1] if total else key[0],
            len(accounts[key]) or None,
            into,
            out,
            into - out,
            (into == out if total else None),
        )


TRIAL_BALANCE = Report(
    "trial-balance",
    "试算平衡与核对",
    "Trial balance and reconciliation",
    columns("""
account text 科目 | account
ledger text 账 | ledger
accounts integer 户数 | accounts
into_fen fen 借入 | into
out_fen fen 贷出 | out of
balance_fen fen 余额 | balance
balanced flag 平衡 | balanced
"""),
    _balance,
)


def _returns(facts: Facts) -> Iterator[Row]:
    for transfer, entries in facts.transfers("P8"):
        row = facts.vouchers.get(transfer.event_key.split(":")[1])
        if row is not None:
            fen = sum(entry.amount_fen for entry in entries if entry.account.startswith("Q.unissued["))
            yield (transfer.id, row.id, facts.programmes[row.programme_id].code, row.organisation_id,
                   facts.name(row.organisation_id), row.use_by, transfer.posted_at_ms, row.face_fen, fen)  # fmt: skip


RETURNS = Report(
    "expiry-returns",
    "到期与回池",
    "Expiry and return to the pool",
    columns("""
transfer integer 入账 | transfer
voucher text 券 | voucher
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
use_by day 使用截止 | use by
posted_at instant 入账时间 | posted at
face_fen fen 面值 | face value
returned_fen fen 回池 | returned
"""),
    _returns,
)


def _integrity(facts: Facts) -> Iterator[Row]:
    """Each closed day's root and chain, then each sealed journal with its SHA-256."""
    query = select(DayRoot).where(col(DayRoot.closed_at_ms) <= facts.as_of_ms).order_by(col(DayRoot.day))
    for day in facts.session.exec(query):
        yield "day", day.day, day.transfers, day.root, day.chain, day.closed_at_ms, None
    for event in facts.events("epoch.seal"):
        yield ("journal", event.subject, None, event.details.get("sha256", ""), "", event.at_ms,
               bool(event.details.get("torn")))  # fmt: skip


INTEGRITY = Report(
    "integrity",
    "完整性: 日根与日志封存",
    "Integrity: day roots and sealed journals",
    columns("""
kind text 类别 | kind
of text 日期或节点纪元 | day, or node and epoch
transfers integer 入账笔数 | transfers
sha256 text 根或摘要 | root or hash
chain text 链 | chain
at instant 时间 | at
torn flag 断尾 | torn tail
"""),
    _integrity,
)


def _findings(facts: Facts) -> Iterator[Row]:
    """Related parties under contract, one invoice number on several contracts, quarantined usage, calls all alike."""
    vouched = {row.subscription_id for row in facts.reservations.values()}
    for key, row in facts.subscriptions.items():
        if facts.programme_id and key not in vouched:
            continue
        if are_related(facts.session, row.organisation_id, row.provider_id):
            yield (
                "related-party",
                row.organisation_id,
                facts.name(row.organisation_id),
                row.provider_id,
                key,
                "",
                1,
                None,
            )
    numbers: dict[tuple[str, str], list[Invoice]] = defaultdict(list)
    for invoice in facts.by_id(Invoice).values():
        numbers[invoice.provider_id, invoice.number].append(invoice)
    for (provider, number), found in sorted(numbers.items()):
        if len(found) > 1:
            contracts = " ".join(sorted(each.subscription_id for each in found))
            amount = sum(each.amount_fen for each in found)
            owner = found[0].organisation_id
            yield (
                "invoice-on-several-contracts",
                owner,
                facts.name(owner),
                provider,
                contracts,
                number,
                len(found),
                (amount),
            )
    yield from _alike(facts)


def _alike(facts: Facts) -> Iterator[Row]:
    count = sa.func.count()
    within = (col(Usage.ingested_at_ms) <= facts.as_of_ms, col(Usage.occurred_at_ms) >= facts.from_ms)
    usage = (col(Usage.organisation_id), col(Usage.provider_id), col(Usage.subscription_id))
    quarantined = (
        sa.select(*usage, col(Usage.reason), count)
        .where(*within, col(Usage.status) == "quarantined")
        .group_by(*usage, col(Usage.reason))
        .order_by(*usage, col(Usage.reason))
    )
    alike = (
        sa.select(*usage, col(Usage.request_digest), count)
        .where(*within, col(Usage.request_digest) != "", col(Usage.purpose) == "use", col(Usage.status) == "ok")
        .group_by(*usage, col(Usage.model), col(Usage.request_digest))
        .having(count >= ALIKE)
        .order_by(*usage, col(Usage.model), col(Usage.request_digest))
    )
    vouched = {row.subscription_id for row in facts.reservations.values()}
    for kind, query in (("quarantined-usage", quarantined), ("calls-alike", alike)):
        rows = facts.session.connection().execution_options(yield_per=CHUNK).execute(query)
        for owner, provider, contract, what, many in rows:
            if not facts.programme_id or contract in vouched:
                yield kind, owner, facts.name(owner), provider, contract, what, many, None


FINDINGS = Report(
    "findings",
    "关联方与重复的发现",
    "Related-party and duplicate findings",
    columns("""
kind text 类别 | kind
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
provider text 供应商编号 | provider id
contracts text 合同 | contracts
what text 发票号、原因或请求摘要 | invoice number, reason or request digest
count integer 数量 | count
amount_fen fen 金额 | amount
"""),
    _findings,
    "关联关系按导出时的企业登记判断; 登记册不保存其历史",
    "who is related to whom is judged by the register of organisations when exported; it keeps no history",
)
