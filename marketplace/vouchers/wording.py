"""A programme in plain language, Chinese and English: what a factory reads before it applies."""

from __future__ import annotations

from typing import Any

from marketplace.vouchers.programme import OPEN_FIELDS, ProgrammeFile, Ratio, unset
from marketplace.vouchers.signals import describe_signals

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
    pairs = [_pool(programme), _who(programme), _share(programme), _cap(programme), _SUBJECT[programme.subject]]
    if programme.filing_required:
        pairs.append(("模型的基础框架须已备案", "the base framework of the model must be filed (备案)"))
    if programme.related_party_policy == "refuse":
        pairs.append(("不支付关联方之间的调用", "it does not pay between related parties"))
    if programme.min_spend_fen:
        pairs.append(
            (
                f"合同金额不低于 {yuan(programme.min_spend_fen)} 元",
                f"the contract is at least {yuan(programme.min_spend_fen)} yuan",
            )
        )
    if programme.settlement_mode:
        pairs.append(_MODE[programme.settlement_mode])
    if programme.payee:
        zh, en = _PAYEE[programme.payee]
        pairs.append((f"补贴付给{zh}", f"the subsidy is paid to {en}"))
    pairs.extend(_validity(programme))
    if programme.evidence_schema:
        pairs.append(
            (
                "申报材料: " + "、".join(item.title_zh for item in programme.evidence_schema),
                "evidence: " + ", ".join(item.title_en for item in programme.evidence_schema),
            )
        )
    if programme.evidence_schema:
        years = programme.retention_years
        pairs.append((f"申报材料保存 {years} 年", f"evidence is kept for {years} years"))
    pairs.append(_stacking(programme))
    if programme.notice_days:
        pairs.append(
            (f"发放前公示 {programme.notice_days} 天", f"a public notice of {programme.notice_days} days precedes it")
        )
        pairs.append(_ON_OBJECTION[programme.notice_on_objection])
    pairs.extend(_signals(programme))
    if missing:
        pairs.append(
            (
                "尚未确定: " + "、".join(OPEN_FIELDS[name][0] for name in missing),
                "not decided yet: " + ", ".join(OPEN_FIELDS[name][1] for name in missing),
            )
        )
    return {"zh": [zh for zh, _ in pairs], "en": [en for _, en in pairs], "unset": missing}


def _signals(programme: ProgrammeFile) -> list[tuple[str, str]]:
    least = yuan(programme.min_spend_fen) if programme.min_spend_fen else ""
    return describe_signals(programme.signals, least, refuses_related=programme.related_party_policy == "refuse")


def _pool(programme: ProgrammeFile) -> tuple[str, str]:
    return (f"总额最高 {yuan(programme.pool_fen)} 元", f"the pool is at most {yuan(programme.pool_fen)} yuan")


def _who(programme: ProgrammeFile) -> tuple[str, str]:
    names = [_WHO[kind] for kind in programme.who]
    return ("适用对象: " + "、".join(zh for zh, _ in names), "for " + " and ".join(en for _, en in names))


def _share(programme: ProgrammeFile) -> tuple[str, str]:
    if programme.ratio:
        text = ratio_text(programme.ratio)
        more = "(部分情形另定)" if programme.ratio_rules else ""
        return (
            f"支付实际结算金额的 {text}{more}",
            f"it pays {text} of what is settled" + (", otherwise for some" if programme.ratio_rules else ""),
        )
    if programme.ratio_max:
        text = ratio_text(programme.ratio_max)
        return (
            f"最高支付实际结算金额的 {text}, 具体比例未定",
            f"it pays at most {text} of what is settled; the ratio is open",
        )
    return ("补贴比例未定", "the ratio is open")


def _stacking(programme: ProgrammeFile) -> tuple[str, str]:
    if programme.stacking == "none":
        return ("同一合同另有财政补贴的, 不予支付", "it does not pay of a contract that has other public subsidies")
    bound = programme.stacking_max
    return (
        f"同一合同的各项补贴合计不超过{f'合同金额的 {ratio_text(bound)}' if bound else '本券的比例'}",
        f"all subsidies of a contract together are at most {ratio_text(bound) if bound else 'its own ratio'} of it",
    )


def _cap(programme: ProgrammeFile) -> tuple[str, str]:
    amount = yuan(programme.cap_fen)
    if programme.cap_period == "calendar_year":
        return (f"每家每年最高 {amount} 元", f"at most {amount} yuan each per calendar year")
    return (f"每家最高 {amount} 元", f"at most {amount} yuan each")


def _validity(programme: ProgrammeFile) -> list[tuple[str, str]]:
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
