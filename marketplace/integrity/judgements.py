"""What `verify` judges of a pack: a closed list, with words for what was judged and for why something could not be."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any


class Judgement(StrEnum):
    """In the order in which they are told."""

    FILES = "FILES"
    AMOUNTS = "AMOUNTS"
    CORRECTIONS = "CORRECTIONS"
    FILINGS = "FILINGS"
    PERIOD = "PERIOD"
    USE_BY = "USE_BY"
    REDEEM_BY = "REDEEM_BY"
    INVOICE_AMOUNTS = "INVOICE_AMOUNTS"
    INVOICE_COVER = "INVOICE_COVER"
    PAYMENT = "PAYMENT"
    PROOFS = "PROOFS"
    SEGMENTS = "SEGMENTS"
    JOURNALS = "JOURNALS"


WORDS = {
    Judgement.FILES: ("每个文件与冻结文件的哈希", "each file's hash, and that of the frozen document"),
    Judgement.AMOUNTS: (
        "各行合计、记账凭证、用量 × 单价、补贴比例",
        "sums of lines, postings, units × price, and the voucher's share",
    ),
    Judgement.CORRECTIONS: ("更正逐条对应其用量记录", "each correction against the record that it takes back"),
    Judgement.FILINGS: ("使用时备案有效", "each filing was valid at the instant of use"),
    Judgement.PERIOD: ("扣费与用量在申报期内", "charges and usage lie within the batch's period"),
    Judgement.USE_BY: ("补贴用量不晚于券的使用截止日", "subsidised usage is not after its voucher's use-by day"),
    Judgement.REDEEM_BY: ("冻结不晚于券的兑付截止日", "the batch was not frozen after a voucher's redeem-by day"),
    Judgement.INVOICE_AMOUNTS: ("任何发票的支撑额不超过票面", "no invoice backs more than its amount"),
    Judgement.INVOICE_COVER: (
        "要求发票时, 发票足额支撑每行",
        "where invoices are asked for, they cover each line's gross",
    ),
    Judgement.PAYMENT: (
        "已支付批次: 金额与批次一致, 两人录入与确认",
        "of a paid batch: the payment is of its amount, entered and confirmed by two persons",
    ),
    Judgement.PROOFS: ("凭证到日根的证明与日链", "each posting's proof to its day's root, and the chain of days"),
    Judgement.SEGMENTS: ("用量所在日志段的证明", "the proofs of the journal segments that have the usage"),
    Judgement.JOURNALS: ("与日志文件逐条核对", "each record against the journals' own bytes"),
}
_OLD_PACK = ("申报包格式较旧, 不含所需内容", "the pack's format is older and has not what this needs")
_OLD_CLAIM = ("冻结文件格式较旧, 未写明", "the frozen document is older and does not say")
WHY_NOT = {
    Judgement.CORRECTIONS: _OLD_PACK,
    Judgement.FILINGS: _OLD_CLAIM,
    Judgement.REDEEM_BY: _OLD_CLAIM,
    Judgement.INVOICE_AMOUNTS: _OLD_CLAIM,
    Judgement.INVOICE_COVER: _OLD_CLAIM,
    Judgement.PAYMENT: _OLD_PACK,
    Judgement.SEGMENTS: _OLD_PACK,
    Judgement.JOURNALS: ("未提供日志文件夹 (--journals)", "no folder of journals was given (--journals)"),
}


def told(missing: Collection[Judgement]) -> list[dict[str, Any]]:
    """[{what, made, zh, en}]: all of them; with `why_zh` and `why_en` where one is `missing`."""
    found = []
    for each in Judgement:
        zh, en = WORDS[each]
        row: dict[str, Any] = {"what": str(each), "made": each not in missing, "zh": zh, "en": en}
        if each in missing:
            row["why_zh"], row["why_en"] = WHY_NOT[each]
        found.append(row)
    return found


def line_of(each: dict[str, Any]) -> str:
    """One of `told` for the terminal, in both languages."""
    what = f"{each['zh']} · {each['en']}"
    if each["made"]:
        return f"已判定 judged: {what}"
    return f"未判定 not judged: {what} ({each['why_zh']} · {each['why_en']})"
