"""What a programme wants looked for, as its data: the closed list of codes, the thresholds, and what is held back.

A finding is something for a person to look at, never a verdict (docs/findings.md). Shares are basis points, amounts
fen, days calendar days in Asia/Shanghai.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from marketplace.vouchers.relations import LEAST_SHARE_BP


class Code(StrEnum):
    """Every kind of finding: a closed list."""

    CONSTANT_INTERVALS = "CONSTANT_INTERVALS"
    IDENTICAL_REQUESTS = "IDENTICAL_REQUESTS"
    BURST_BEFORE_USE_BY = "BURST_BEFORE_USE_BY"
    SPEND_JUST_OVER = "SPEND_JUST_OVER"
    CONTRACTS_JUST_OVER = "CONTRACTS_JUST_OVER"
    RELATED_PARTY = "RELATED_PARTY"
    SHARED_PERSON = "SHARED_PERSON"
    SHARED_CONTACT = "SHARED_CONTACT"
    INVOICE_REUSED = "INVOICE_REUSED"


# code → (zh, en): what it is called
TITLES = {
    Code.CONSTANT_INTERVALS: ("间隔恒定的调用", "calls at constant intervals"),
    Code.IDENTICAL_REQUESTS: ("内容相同的调用", "calls with the same request"),
    Code.BURST_BEFORE_USE_BY: ("到期前集中用券", "spending bunched before the use-by day"),
    Code.SPEND_JUST_OVER: ("实际金额刚过门槛", "spending that stops just over the threshold"),
    Code.CONTRACTS_JUST_OVER: ("多份合同刚过门槛", "several contracts just over the threshold"),
    Code.RELATED_PARTY: ("关联方", "related parties"),
    Code.SHARED_PERSON: ("姓名或名称相同的人", "a person or firm of the same name on both sides"),
    Code.SHARED_CONTACT: ("联系方式相同", "a shared address, telephone or e-mail domain"),
    Code.INVOICE_REUSED: ("发票重复使用", "one invoice used more than once"),
}


class Signals(BaseModel):
    """The thresholds, each with the value it has where a programme says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_days: int = Field(default=92, ge=1, le=3_650)  # how far back calls are looked at
    interval_calls: int = Field(default=200, ge=10, le=1_000_000)  # of one key and contract within a day
    interval_cv_bp: int = Field(default=500, ge=0, le=10_000)  # standard deviation of the gaps ÷ their mean, at most
    identical_calls: int = Field(default=100, ge=2, le=1_000_000)  # of one contract and model with the same request
    identical_share_bp: int = Field(default=100, ge=0, le=10_000)  # of the contract's calls, at least
    burst_days: int = Field(default=7, ge=1, le=365)  # the last days, the use-by day included
    burst_share_bp: int = Field(default=5_000, ge=1, le=10_000)  # of what the voucher paid in all, at least
    burst_fen: int = Field(default=100_000, ge=1)  # paid in these days, at least
    burst_valid_days: int = Field(default=28, ge=1, le=3_650)  # only vouchers that could be used for so long
    just_over_bp: int = Field(default=500, ge=0, le=10_000)  # of the least amount, counted upwards from it
    just_over_contracts: int = Field(default=2, ge=2, le=1_000)
    just_over_idle_days: int = Field(default=14, ge=0, le=365)  # no call for so long: it stopped there
    related_share_bp: int = Field(default=LEAST_SHARE_BP, ge=1, le=10_000)  # from which a share relates
    hold_claims_on: tuple[Code, ...] = ()


def percent(bp: int) -> str:
    """Basis points as a percentage with no more decimals than needed: 2500 → 25%, 50 → 0.5%."""
    return f"{bp / 100:g}%"


def describe_signals(signals: Signals, least_yuan: str, *, refuses_related: bool) -> list[tuple[str, str]]:
    """The thresholds as sentences, (zh, en) each; on the least amount ("": none) and on related parties
    only where the programme has such a rule."""
    s = signals
    found = [
        (
            f"以下情形列为线索, 由人核查 (看最近 {s.window_days} 天的调用)",
            f"these are looked at by a person as findings (over the calls of the last {s.window_days} days)",
        ),
        (
            f"同一密钥一天内调用不少于 {s.interval_calls} 次, 间隔的变异系数不超过 {percent(s.interval_cv_bp)}",
            f"at least {s.interval_calls} calls of one key in a day whose intervals vary by at most "
            f"{percent(s.interval_cv_bp)} (coefficient of variation)",
        ),
        (
            f"同一请求不少于 {s.identical_calls} 次, 且不少于该合同调用的 {percent(s.identical_share_bp)}",
            f"the same request at least {s.identical_calls} times, and at least {percent(s.identical_share_bp)} of "
            "the contract's calls",
        ),
        (
            f"有效期不少于 {s.burst_valid_days} 天的券, 最后 {s.burst_days} 天支付不少于全部的 "
            f"{percent(s.burst_share_bp)} 且不少于 {s.burst_fen / 100:g} 元",
            f"a voucher valid for {s.burst_valid_days} days or more that pays {percent(s.burst_share_bp)} of all, and "
            f"{s.burst_fen / 100:g} yuan or more, in its last {s.burst_days} days",
        ),
    ]
    if refuses_related:
        found.append(
            (
                f"持股 {percent(s.related_share_bp)} 及以上 (含逐级间接)、同一控制人或同一法定代表人为关联方",
                f"a share of {percent(s.related_share_bp)} or more (step by step, through others too), one controller "
                "or one legal representative relates two parties",
            )
        )
    if least_yuan:
        found.append(
            (
                f"实际金额停在最低 {least_yuan} 元以上 {percent(s.just_over_bp)} 之内满 {s.just_over_idle_days} 天, "
                f"或 {s.just_over_contracts} 份以上合同金额在此区间",
                f"spending that has stopped for {s.just_over_idle_days} days within {percent(s.just_over_bp)} above "
                f"the least {least_yuan} yuan, or {s.just_over_contracts} contracts or more in that band",
            )
        )
    if s.hold_claims_on:
        found.append(
            (
                "有下列未排除线索的不列入申报: " + "、".join(TITLES[code][0] for code in s.hold_claims_on),
                "kept out of a claim until dismissed: " + "; ".join(TITLES[code][1] for code in s.hold_claims_on),
            )
        )
    return found
