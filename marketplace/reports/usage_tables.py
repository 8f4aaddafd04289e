"""Reports on usage, filings, performance and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlmodel import col

from marketplace.catalogue.tables import Filing, Listing
from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.ledger.tables import LedgerTransfer
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import CHUNK, Facts
from marketplace.usage.tables import Usage
from marketplace.vouchers.sale import filing_row

_FIELDS = (
    "usage_id",
    "occurred_at_ms",
    "ingested_at_ms",
    "organisation_id",
    "provider_id",
    "listing_id",
    "model",
    "adapter",
    "price_version",
    "amount_micro",
    "lease_kind",
    "purpose",
    "status",
    "reason",
    "subscription_id",
    "reservation_id",
    "lease_id",
    "node",
    "epoch",
    "seq",
    "request_digest",
    "response_digest",
    "filing_id",
)


def _usage(facts: Facts) -> Iterator[Any]:
    """Usage ingested by then, with the posting that carried it by then (None: it waited), in id order."""
    query = (
        sa.select(*(getattr(Usage, name) for name in _FIELDS), col(LedgerTransfer.id).label("transfer"))
        .join(
            LedgerTransfer,
            sa.and_(
                col(LedgerTransfer.id) == col(Usage.transfer_id), col(LedgerTransfer.posted_at_ms) <= facts.as_of_ms
            ),
            isouter=True,
        )
        .where(col(Usage.ingested_at_ms) <= facts.as_of_ms, col(Usage.occurred_at_ms) >= facts.from_ms)
        .order_by(col(Usage.usage_id))
    )
    for row in facts.session.connection().execute(query, execution_options={"yield_per": CHUNK}):
        if not facts.programme_id or row.reservation_id in facts.reservations:
            yield row


def _detail(facts: Facts) -> Iterator[Row]:
    for row in _usage(facts):
        yield (*(getattr(row, name) for name in _FIELDS), row.transfer)


DETAIL = Report(
    "usage-detail",
    "用量明细",
    "Usage detail",
    columns(
        """
usage_id text 用量编号 | usage id
occurred_at instant 发生 | occurred at
ingested_at instant 入库 | ingested at
enterprise text 企业编号 | enterprise id
provider text 供应商编号 | provider id
listing text 商品 | listing
model text 模型版本 | model version
adapter text 适配器 | adapter
price_version text 价格版本 | price version
amount_micro micro_fen 金额 | amount
kind text 计费方式 | charged as
purpose text 用途 | purpose
status text 状态 | status
reason text 隔离原因 | why quarantined
contract text 合同 | contract
reservation text 预留 | reservation
lease text 额度 | lease
node text 节点 | node
epoch integer 纪元 | epoch
seq integer 序号 | sequence
request_digest text 请求摘要 | request digest
response_digest text 回应摘要 | response digest
filing_id text 使用时的备案 (空: 无或未记录) | filing at use (empty: none, or not recorded)
transfer integer 入账 | transfer
"""
    ),
    _detail,
)


def _summary(facts: Facts) -> Iterator[Row]:
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
    for row in _usage(facts):
        month = policy_date(row.occurred_at_ms).isoformat()[:7]
        key: tuple[Any, ...] = (
            month,
            row.organisation_id,
            row.provider_id,
            row.model,
            row.lease_kind,
            row.purpose,
            row.status,
        )
        sums[key][0] += 1
        sums[key][1] += row.amount_micro
    for key in sorted(sums):
        yield (key[0], key[1], facts.name(key[1]), *key[2:], *sums[key])


SUMMARY = Report(
    "usage-summary",
    "用量汇总",
    "Usage summary",
    columns(
        """
month text 月份 | month
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
provider text 供应商编号 | provider id
model text 模型版本 | model version
kind text 计费方式 | charged as
purpose text 用途 | purpose
status text 状态 | status
calls integer 次数 | calls
amount_micro micro_fen 金额 | amount
"""
    ),
    _summary,
)


def _filings(facts: Facts) -> Iterator[Row]:
    """Each filing with each listing that is or was under it, its own or inherited, and the usage inside and outside it:
    under the filing that was recorded at use, and where none was, under the one that the listing has now.

    Use past a filing's end is charged to the enterprise, so what lapsed is counted whoever paid; the last two columns
    say what of it a voucher has paid, which is to be nothing.
    """
    filings, listings = facts.by_id(Filing), facts.by_id(Listing)
    found = {key: filing_row(facts.session, listing) for key, listing in listings.items()}
    under = {key: filing.id for key, filing in found.items() if filing is not None and filing.id in filings}
    bound: dict[str, list[str]] = defaultdict(list)
    for listing_id, filing_id in under.items():
        bound[filing_id].append(listing_id)
    counts = _of_filings(facts, under, {key: _span(filing) for key, filing in filings.items()})
    for filing_id, listing_id in counts:  # of another filing by now
        if listing_id in listings and listing_id not in bound[filing_id]:
            bound[filing_id].append(listing_id)
    for key, filing in filings.items():
        until = filing.valid_until
        lapsed = bool(until) and until < policy_date(facts.as_of_ms).isoformat()
        head = (filing.number, filing.kind, filing.model_name, filing.holder, filing.valid_from, until, lapsed,
                filing.is_demo)  # fmt: skip
        for listing_id in bound[key]:
            listing = listings[listing_id]
            binding = "past" if under.get(listing_id) != key else "own" if listing.filing_id == key else "inherited"
            yield (*head, listing.name, binding, *counts[key, listing_id])
        if not bound[key]:
            yield (*head, "", "", *_NOTHING)


_NOTHING = (0,) * 6


def _of_filings(
    facts: Facts, under: dict[str, str], spans: dict[str, tuple[int, int]]
) -> dict[tuple[str, str], list[int]]:
    """(filing, listing) → calls and micro-fen: subsidised inside, charged while lapsed, subsidised while lapsed."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: list(_NOTHING))
    for row in _usage(facts):
        filing_id = under.get(row.listing_id) if row.filing_id is None else row.filing_id
        if filing_id not in spans or row.lease_kind == "free" or row.status == "quarantined":
            continue
        first, last = spans[filing_id]
        subsidised, inside = row.lease_kind == "subsidised", first <= row.occurred_at_ms <= last
        of = counts[filing_id, row.listing_id]
        for at, counted in ((0, inside and subsidised), (2, not inside), (4, not inside and subsidised)):
            of[at] += counted
            of[at + 1] += row.amount_micro if counted else 0
    return counts


def _span(filing: Filing) -> tuple[int, int]:
    first = start_of_day_ms(date.fromisoformat(filing.valid_from))
    return first, end_of_day_ms(date.fromisoformat(filing.valid_until)) if filing.valid_until else 2**62


FILINGS = Report(
    "filing-register",
    "备案登记册与失效备案用量",
    "Filing register with usage on lapsed filings",
    columns(
        """
number text 备案号 | filing number
kind text 类别 | kind
model text 模型 | model
holder text 持有人 | holder
valid_from day 起 | valid from
valid_until day 止 | valid until
lapsed flag 已失效 | lapsed
demonstration flag 演示 | demonstration
listing text 商品 | listing
binding text 绑定 (own 自有, inherited 沿用基础模型, past 曾经) | own, inherited from its base, or past
calls_inside integer 有效期内补贴次数 | subsidised calls inside
amount_inside_micro micro_fen 有效期内补贴调用金额 | amount of subsidised calls inside
calls_lapsed integer 失效期计费次数 (补贴与自费) | charged calls while lapsed, whoever paid
amount_lapsed_micro micro_fen 失效期金额 | amount while lapsed
subsidised_lapsed integer 其中由券支付的次数 | of these, calls that a voucher paid its share of
subsidised_lapsed_micro micro_fen 其中由券支付的金额 | amount of these
"""
    ),
    _filings,
    "用量按使用时记录的备案统计; 早期未记录的用量及无用量商品按导出时的绑定 (历史见审计日志 listing.filing)",
    "usage counts under the filing recorded at its use; listings without usage, and usage from before that was kept, "
    "stand under what they are bound to when exported (its history is in the audit log)",
)


def _performance(facts: Facts) -> Iterator[Row]:
    found: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"enterprises": set(), "providers": set(), "models": set(), "calls": 0, "gross": 0, "subsidy": 0}
    )
    for row in _usage(facts):
        if row.status == "quarantined" or row.purpose != "use":
            continue
        of = found[policy_date(row.occurred_at_ms).isoformat()[:7]]
        of["calls"] += 1
        of["enterprises"].add(row.organisation_id)
        of["providers"].add(row.provider_id)
        of["models"].add(row.listing_id)
    for charge in facts.charges():
        of = found[policy_date(charge.occurred_at_ms).isoformat()[:7]]
        of["gross"] += charge.gross_fen
        of["subsidy"] += charge.subsidy_fen
    for month in sorted(found):
        of = found[month]
        sizes = (len(of[name] - {""}) for name in ("enterprises", "providers", "models"))
        share = of["subsidy"] * 10_000 // of["gross"] if of["gross"] > 0 else None
        yield (month, *sizes, of["calls"], of["gross"], of["subsidy"], of["gross"] - of["subsidy"], share)


PERFORMANCE = Report(
    "performance",
    "绩效数据",
    "Performance figures",
    columns(
        """
month text 月份 | month
enterprises integer 用模型的企业 | enterprises using models
providers integer 供应商 | providers
models integer 商品 | listings
calls integer 调用 | calls
gross_fen fen 计费总额 | gross
subsidy_fen fen 补贴 | subsidy
own_fen fen 企业自付 | own cost
share_bp integer 补贴占比 (万分之) | subsidy in 1/10,000 of gross
"""
    ),
    _performance,
)


def _cost(facts: Facts) -> Iterator[Row]:
    """Of each charge a Usage row of its gross, and a Credit row of minus its subsidy; of a correction the reverse."""
    for charge in facts.charges():
        day = policy_date(charge.occurred_at_ms)
        first = start_of_day_ms(day.replace(day=1))
        after = start_of_day_ms(day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1, day=1))
        contract = facts.subscriptions.get(charge.subscription)
        listing = contract.listing_id if contract else ""
        programme = facts.programmes[charge.programme].code if charge.programme else ""
        for category, fen in (("Usage", charge.gross_fen), ("Credit", -charge.subsidy_fen)):
            if not fen:
                continue
            yield (charge.enterprise, facts.name(charge.enterprise), "CNY", first, after, category,
                   "Correction" if charge.kind == "P13" else "", "Usage-Based",
                   "Model calls" if category == "Usage" else "Voucher", start_of_day_ms(day),
                   start_of_day_ms(day) + 86_400_000, fen, fen, fen if category == "Usage" else 0,
                   facts.name(charge.provider), listing, "AI and Machine Learning", charge.subscription,
                   charge.transfer_id, programme, charge.voucher, fen)  # fmt: skip


COST = Report(
    "cost-focus",
    "FOCUS 格式费用文件",
    "FOCUS-style cost file",
    columns(
        """
BillingAccountId text 企业编号 | billing account
BillingAccountName text 企业 | billing account name
BillingCurrency text 币种 | currency
BillingPeriodStart instant 账期起 | billing period start
BillingPeriodEnd instant 账期止 | billing period end
ChargeCategory text 类别 | charge category
ChargeClass text 更正 | charge class
ChargeFrequency text 频率 | charge frequency
ChargeDescription text 说明 | description
ChargePeriodStart instant 费用日起 | charge period start
ChargePeriodEnd instant 费用日止 | charge period end
BilledCost yuan 计费 | billed cost
EffectiveCost yuan 有效费用 | effective cost
ListCost yuan 标价费用 | list cost
ProviderName text 供应商 | provider
ServiceName text 商品 | service
ServiceCategory text 服务类别 | service category
ResourceId text 合同 | resource
x_TransferId integer 入账 | transfer
x_Programme text 券项目 | programme
x_VoucherId text 券 | voucher
x_BilledCostFen fen 计费 | billed cost
"""
    ),
    _cost,
)
