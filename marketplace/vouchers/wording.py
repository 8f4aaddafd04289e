"""A programme in plain language, Chinese and English: what a factory reads before it applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marketplace.catalogue.labels import TIERS
from marketplace.vouchers.programme import OPEN_FIELDS, ProgrammeFile, Ratio, RatioRule, unset
from marketplace.vouchers.signals import describe_signals, percent

Pair = tuple[str, str]  # a sentence in Chinese and in English

_WHO = {"enterprise": ("企业", "enterprises"), "vendor": ("模型与软件供应商", "model and software vendors")}
_SUBJECT = {
    "base": ("仅支付基础模型的调用", "it pays for calls of base models only"),
    "derivative": ("仅支付派生模型的调用", "it pays for calls of derivatives only"),
    "both": ("支付原模型与派生模型的调用", "it pays for calls of models and of derivatives"),
}
_MODE = {
    "reimburse": ("先全额付款, 凭证核销后补贴", "you pay in full and are reimbursed against evidence"),
    "deduct": ("调用时直接抵扣, 平台向政府结算", "it is deducted at use, and the platform settles with the city"),
}
_PAYEE = {
    "enterprise": ("企业", "the enterprise"),
    "provider": ("供应商", "the provider"),
    "platform": ("平台", "the platform"),
}
_CLAWBACK = {
    "full": (
        "追回时追回该笔明细已付的全部",
        "a clawback takes back all that was paid for a line",
    ),
    "proportional": (
        "追回时可只追回该笔明细已付的一部分",
        "a clawback may take back a part of what was paid for a line",
    ),
}
_ONCE = {
    True: ("一份合同只由本项目的一张券支付", "it pays for a contract out of one voucher"),
    False: ("一份合同可由本项目的多张券支付", "it may pay for a contract out of several vouchers"),
}
_KIND = {
    "model": ("模型券: 用于模型的二次开发与应用", "a model voucher: for developing on models and applying them"),
    "compute": ("算力券: 用于租用算力", "a compute voucher: for renting compute"),
}
_CHECK = {
    "standing": ("单位资格", "standing"),
    "uscc": ("统一社会信用代码", "credit code"),
    "filing": ("有可用的备案模型", "a filed model"),
    "cap": ("上限余额", "room in the cap"),
    "pool": ("资金池余额", "room in the pool"),
    "evidence": ("材料齐全", "evidence complete"),
}
_LET_PASS = {
    True: (", 未通过的可由两人放行", ", two persons may let a failure pass"),
    False: (", 未通过的不得放行", ", a failure is final"),
}
_ON_OBJECTION = {
    "continue": ("异议不成立的, 公示期不变", "an objection that is dismissed leaves the notice's days as they are"),
    "extend": (
        "异议不成立的, 公示期按处理天数顺延",
        "the days that a dismissed objection took are added to the notice",
    ),
    "restart": ("异议不成立的, 重新公示", "after a dismissed objection the notice begins anew"),
}


def yuan(fen: int) -> str:
    """Fen as yuan, with no more decimals than needed: 1234500 → 12,345."""
    whole, rest = divmod(fen, 100)
    return f"{whole:,}" + (f".{rest:02d}" if rest else "")


def ratio_text(ratio: Ratio) -> str:
    """A share as people write it: 50%, and 1/3 where a percentage would round."""
    percent, rest = divmod(ratio.num * 100, ratio.den)
    return f"{ratio.num}/{ratio.den}" if rest else f"{percent}%"


def describe(programme: ProgrammeFile) -> dict[str, Any]:
    """`{zh: [sentences], en: [sentences], unset: [fields]}`; a value that is still open is said to be open."""
    missing = unset(programme)
    pairs = [pair for told in _TOLD for pair in told(programme)]
    if missing:
        pairs.append(
            (
                "尚未确定: " + "、".join(OPEN_FIELDS[name][0] for name in missing),
                "not decided yet: " + ", ".join(OPEN_FIELDS[name][1] for name in missing),
            )
        )
    return {"zh": [zh for zh, _ in pairs], "en": [en for _, en in pairs], "unset": missing}


def _signals(programme: ProgrammeFile) -> list[Pair]:
    least = yuan(programme.min_spend_fen) if programme.min_spend_fen else ""
    return describe_signals(programme.signals, least, refuses_related=programme.related_party_policy == "refuse")


def _document(programme: ProgrammeFile) -> list[Pair]:
    if not programme.document_zh and not programme.document_en:
        return []
    return [
        (
            f"依据: {programme.document_zh or programme.document_en}",
            f"by: {programme.document_en or programme.document_zh}",
        )
    ]


def _pool(programme: ProgrammeFile) -> list[Pair]:
    parts = [f"{tranche.code} {yuan(tranche.fen)}" for tranche in programme.tranches]
    waits = [tranche.code for tranche in programme.tranches if tranche.own_approval]
    pairs = [
        (f"总额最高 {yuan(programme.pool_fen)} 元", f"the pool is at most {yuan(programme.pool_fen)} yuan"),
        (f"分批拨入 (元): {'、'.join(parts)}", f"released in tranches (yuan): {'; '.join(parts)}"),
    ]
    if waits:
        pairs.append(
            (
                f"下列批次须另经两人批准方可发券: {'、'.join(waits)}",
                f"two persons approve these tranches by themselves before vouchers are issued from them: "
                f"{', '.join(waits)}",
            )
        )
    if programme.funders:
        shares = [(funder, percent(funder.share_bp)) for funder in programme.funders]
        pairs.append(
            (
                "出资: " + "、".join(f"{funder.name_zh} {share}" for funder, share in shares),
                "funded by " + ", ".join(f"{funder.name_en} {share}" for funder, share in shares),
            )
        )
    return pairs


def _who(programme: ProgrammeFile) -> list[Pair]:
    names = [_WHO[kind] for kind in programme.who]
    return [
        ("适用对象: " + "、".join(zh for zh, _ in names), "for " + " and ".join(en for _, en in names)),
        _KIND[programme.kind],
    ]


def _share(programme: ProgrammeFile) -> list[Pair]:
    pairs = list(map(_ratio_rule, programme.ratio_rules))
    if pairs:
        pairs.insert(
            0,
            (
                "支付比例按下列首条适用的情形, 其余按一般比例",
                "the first of these that fits sets the share, else the general one",
            ),
        )
    if programme.ratio:
        text = ratio_text(programme.ratio)
        pairs.append((f"支付实际结算金额的 {text}", f"it pays {text} of what is settled"))
    elif not programme.ratio_max:
        pairs.append(("补贴比例未定", "the ratio is open"))
    if programme.ratio_max:
        text = ratio_text(programme.ratio_max)
        open_zh, open_en = ("", "") if programme.ratio else (", 具体比例未定", "; the ratio is open")
        pairs.append((f"最高支付实际结算金额的 {text}{open_zh}", f"it pays at most {text} of what is settled{open_en}"))
    return pairs


def _ratio_rule(rule: RatioRule) -> Pair:
    zh, en = [], []
    if rule.tiers:
        zh.append("、".join(TIERS[tier][0] for tier in rule.tiers))
        en.append(" or ".join(TIERS[tier][1] for tier in rule.tiers))
    if rule.filed is not None:
        zh.append("已备案" if rule.filed else "未备案")
        en.append("filed" if rule.filed else "not filed")
    if rule.firm_age_max_years is not None:
        zh.append(f"企业发券时成立不超过 {rule.firm_age_max_years} 年")
        en.append(f"the firm at most {rule.firm_age_max_years} years old at the issue")
    text = ratio_text(rule.ratio)
    return f"{', '.join(zh) or '一律'}: 支付 {text}", f"{', '.join(en) or 'always'}: it pays {text}"


def _stacking(programme: ProgrammeFile) -> list[Pair]:
    if programme.stacking == "none":
        return [("同一合同另有财政补贴的, 不予支付", "it does not pay of a contract that has other public subsidies")]
    bound = programme.stacking_max
    return [
        (
            f"同一合同的各项补贴合计不超过{f'合同金额的 {ratio_text(bound)}' if bound else '本券的比例'}",
            f"all subsidies of a contract together are at most {ratio_text(bound) if bound else 'its own ratio'} of it",
        )
    ]


def _cap(programme: ProgrammeFile) -> list[Pair]:
    amount = yuan(programme.cap_fen)
    if programme.cap_period == "calendar_year":
        return [(f"每家每年最高 {amount} 元", f"at most {amount} yuan each per calendar year")]
    return [(f"每家最高 {amount} 元", f"at most {amount} yuan each")]


def _covered(programme: ProgrammeFile) -> list[Pair]:
    pairs = [_SUBJECT[programme.subject]]
    if programme.filing_required:
        pairs.append(("模型的基础框架须已备案", "the base framework of the model must be filed (备案)"))
    if programme.related_party_policy == "refuse":
        pairs.append(("不支付关联方之间的调用", "it does not pay between related parties"))
    if programme.min_spend_fen:
        least = yuan(programme.min_spend_fen)
        pairs.append(
            (
                f"合同金额与实际结算金额均不低于 {least} 元",
                f"the contract, and what is settled of it, is at least {least} yuan",
            )
        )
    return pairs


def _settled(programme: ProgrammeFile) -> list[Pair]:
    pairs = [_MODE[programme.settlement_mode]] if programme.settlement_mode else []
    if programme.payee:
        zh, en = _PAYEE[programme.payee]
        pairs.append((f"补贴付给{zh}", f"the subsidy is paid to {en}"))
    if programme.tax_basis:
        fee, vat = percent(programme.tax_basis.fee_bp), percent(programme.tax_basis.vat_bp)
        pairs.append(
            (
                f"结算金额中平台服务费占 {fee}, 增值税占 {vat}",
                f"of what is settled {fee} is the market's fee and {vat} VAT",
            )
        )
    return pairs


def _validity(programme: ProgrammeFile) -> list[Pair]:
    if programme.validity is None:
        return []
    until = programme.validity.until
    return [
        (
            f"发放后 {programme.validity.days} 天内使用" + (f", 最迟 {until}" if until else ""),
            f"to be used within {programme.validity.days} days of issue"
            + (f", at the latest on {until}" if until else ""),
        ),
        (
            f"使用期满后 {programme.validity.redeem_days} 天内核销",
            f"to be redeemed within {programme.validity.redeem_days} days after that",
        ),
    ]


def _late(programme: ProgrammeFile) -> list[Pair]:
    days = programme.late_usage_grace_days
    return [
        (
            f"使用期满后 {days} 天内仍接收此前发生的用量, 之后未用的余额退回资金池",
            f"usage of before that day is still taken in for {days} days; then what is unused goes back to the pool",
        ),
        (
            f"用券顺序 {programme.priority} (数小的先用)",
            f"vouchers are used in order of priority, and this one's is {programme.priority} (smaller first)",
        ),
    ]


def _checks(programme: ProgrammeFile) -> list[Pair]:
    made = [c for c in programme.checks if c.code != "filing" or programme.filing_required]
    zh = [f"{_CHECK[c.code][0]} ({c.valid_days} 天{_LET_PASS[c.may_be_overridden][0]})" for c in made]
    en = [f"{_CHECK[c.code][1]} ({c.valid_days} days{_LET_PASS[c.may_be_overridden][1]})" for c in made]
    return [
        (
            f"核验及其有效天数: {'、'.join(zh) or '无'}",
            f"checks, each with the days it holds: {', '.join(en) or 'none'}",
        )
    ]


def _evidence(programme: ProgrammeFile) -> list[Pair]:
    if not programme.evidence_schema:
        return []
    years = programme.retention_years
    return [
        (
            "申报材料: " + "、".join(item.title_zh for item in programme.evidence_schema),
            "evidence: " + ", ".join(item.title_en for item in programme.evidence_schema),
        ),
        (f"申报材料保存 {years} 年", f"evidence is kept for {years} years"),
    ]


def _notice(programme: ProgrammeFile) -> list[Pair]:
    if not programme.notice_days:
        return []
    days = programme.notice_days
    return [
        (
            f"发放前与申报付款前各公示 {days} 天",
            f"a public notice of {days} days precedes the issue, and another the payment of a claim",
        ),
        _ON_OBJECTION[programme.notice_on_objection],
    ]


def _contract_once(programme: ProgrammeFile) -> list[Pair]:
    return [_ONCE[programme.contract_once]]


def _clawback(programme: ProgrammeFile) -> list[Pair]:
    return [_CLAWBACK[programme.clawback_policy]]


# in the order that they are read; each tells some fields, and a test holds them all against ProgrammeFile's
_TOLD: tuple[Callable[[ProgrammeFile], list[Pair]], ...] = (
    _document, _pool, _who, _share, _cap, _covered, _settled, _validity, _late, _checks, _evidence, _contract_once,
    _stacking, _notice, _clawback, _signals,
)  # fmt: skip
