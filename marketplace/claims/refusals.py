"""The words of claims' refusals and of why a line is left out."""

from __future__ import annotations

from model_store.errors import BadInput, Conflict, NotFound

# reason → (zh, en): why something charged is not claimed now
LEFT_OUT = {
    "NOTHING_TO_CLAIM": (
        "没有可申报的金额: 更正后无余额, 或本期补贴尚不足一分, 可并入更长期间",
        "it has no whole fen of subsidy: after corrections, or not yet, and a longer period may have one",
    ),
    "RELATED_PARTY": ("企业与供应商为关联方", "enterprise and provider are related"),
    "REDEEM_BY_OVER": ("已过兑付期", "the voucher's redeem-by day is over"),
    "SPEND_TOO_SMALL": ("合同实际金额未达最低要求", "the contract's settled amount is below the programme's least"),
    "OTHER_SUBSIDY": (
        "合同另有已申报的补贴, 合计超过上限",
        "other subsidies are declared on the contract, and together they would pass the bound",
    ),
    "CORRECTION_OUTSIDE": (
        "本期之外的扣费有更正, 已抵减本期金额; 请延长期间, 一并申报",
        "corrections outside the period have taken part of it back; choose a longer period that has them too",
    ),
    "INVOICE_MISSING": ("发票金额不足", "its invoices do not cover it"),
    "FINDING_OPEN": (
        "有未排除的线索, 项目规定暂不申报",
        "a finding about it is not dismissed, and the programme holds such",
    ),
}


def nothing_to_claim(left_out: int) -> Conflict:
    return Conflict(
        "CLAIM_EMPTY",
        zh="所选期间没有可申报的扣费",
        en="there is nothing to claim in this period",
        remedy_zh=f"请更换期间; 另有 {left_out} 行因故未列入" if left_out else "请更换期间或券项目",
        remedy_en=f"choose another period; {left_out} lines are left out, each with its reason"
        if left_out
        else "choose another period or programme",
        details={"left_out": left_out},
    )


def reason_of(text: str, field: str = "reason") -> str:
    """What was given as a reason, trimmed. `BadInput` REASON_REQUIRED where it is empty."""
    if not text.strip():
        raise BadInput(
            "REASON_REQUIRED",
            zh="请写明原因",
            en="this takes a reason",
            remedy_zh="原因会写入台账并通知企业",
            remedy_en="it is kept and told to the enterprise",
            field=field,
        )
    return text.strip()


def claim_not_found(zh: str, en: str, row_id: str) -> NotFound:
    return NotFound(
        "CLAIM_NOT_FOUND",
        zh=f"没有{zh}“{row_id[:60]}”",
        en=f"there is no {en} {row_id[:60]!r}",
        remedy_zh="请查看列表",
        remedy_en="see the list",
    )


def period_invalid() -> BadInput:
    return BadInput(
        "CLAIM_PERIOD",
        zh="申报期间须为两个日期, 且起始日不晚于截止日",
        en="a period is two days, the first not after the last",
        remedy_zh="请填写形如 2026-10-01 的日期",
        remedy_en="give days such as 2026-10-01",
        field="from_day",
    )


def payment_day() -> BadInput:
    return BadInput(
        "PAYMENT_DAY",
        zh="付款日期须为日期",
        en="the day of payment is a day",
        remedy_zh="请填写形如 2026-10-01 的日期",
        remedy_en="give a day such as 2026-10-01",
        field="paid_on",
    )


def payment_reference() -> BadInput:
    return BadInput(
        "PAYMENT_REFERENCE",
        zh="须填写付款凭证号",
        en="a payment has a reference",
        remedy_zh="请填写国库支付凭证上的编号",
        remedy_en="give the number on the treasury's payment voucher",
        field="reference",
    )


def payment_mismatch(claimed_fen: int, paid_fen: int) -> Conflict:
    return Conflict(
        "PAYMENT_MISMATCH",
        zh=f"付款 {paid_fen} 分与批次金额 {claimed_fen} 分不一致",
        en=f"{paid_fen} fen were paid and the batch is {claimed_fen} fen",
        remedy_zh="请核对付款凭证, 或先退回/剔除相应行",
        remedy_en="look at the payment again, or return or reject the lines that are not paid",
        field="amount_fen",
        details={"claimed_fen": claimed_fen, "paid_fen": paid_fen},
    )


def payment_twice(reference: str, batch_id: str) -> Conflict:
    return Conflict(
        "PAYMENT_TWICE",
        zh=f"付款凭证号“{reference[:60]}”已登记在批次 {batch_id} 上",
        en=f"payment {reference[:60]!r} is entered for batch {batch_id} already",
        remedy_zh="一笔付款只对应一个批次; 请核对凭证号, 若登记有误请先撤回该批次的付款登记",
        remedy_en="one payment pays one batch: check the reference, or take the wrong entry back (unpay) first",
        field="reference",
        details={"claim_id": batch_id},
    )


def amount_beyond(left_fen: int) -> BadInput:
    return BadInput(
        "CLAWBACK_AMOUNT",
        zh=f"追回金额须大于零且不超过 {left_fen} 分",
        en=f"a clawback is above zero and at most the {left_fen} fen that are left of the line",
        remedy_zh="请修改金额; 该券项目若规定全额追回, 须为全部余额",
        remedy_en="change the amount; where the programme says full, it is all that is left",
        field="amount_fen",
        details={"left_fen": left_fen},
    )


def correction_refused(code: str, zh: str, en: str, remedy_zh: str, remedy_en: str) -> Conflict:
    return Conflict(code, zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en, field="usage_id")
