"""The words for every reason that a voucher, contract or lease gives for saying no. The code is the reason's name."""

from __future__ import annotations

from typing import Any, TypeVar

from marketplace.vouchers.eligibility import Reason
from model_store.errors import Conflict, Forbidden, PaymentRequired, Refusal

R = TypeVar("R", bound=Refusal)
# code → (zh, en, remedy zh, remedy en)
_WORDS: dict[str, tuple[str, str, str, str]] = {
    "ORGANISATION_NOT_APPROVED": (
        "单位尚未通过审核", "the organisation is not approved", "请联系平台运营方", "ask the market's operator",
    ),
    "NOT_IN_SCOPE": (
        "该券项目不面向此类单位", "the programme is not for organisations of this kind",
        "请查看其他券项目", "look at other programmes",
    ),
    "DEMO_MISMATCH": (
        "演示单位只能使用演示券, 正式单位只能使用正式券",
        "demonstration organisations take part in demonstration programmes only, real ones in real ones only",
        "请选择对应的券项目", "choose a programme of the same kind",
    ),
    "USCC_INVALID": (
        "统一社会信用代码缺失或无效", "the unified social credit code is missing or not valid",
        "请更正单位信息", "correct the organisation's data",
    ),
    "NO_FILED_MODEL": (
        "登记册中没有该券可以支付的有效备案", "the register has no valid filing that this voucher could pay for",
        "请先由运营方登记备案", "the operator enters a filing first",
    ),
    "AMOUNT_INVALID": (
        "金额须大于零且不超过每家上限", "the amount is above zero and at most the cap",
        "请修改金额", "change the amount",
    ),
    "CAP_REACHED": ("超过每家上限的余额", "more than the cap has room for", "请减少金额", "ask for less"),
    "POOL_EXHAUSTED": (
        "资金池余额不足", "the pool has not enough left",
        "请减少金额或等待下一批次", "ask for less, or wait for a tranche",
    ),
    "TRANCHE_WAITS": (
        "余额在尚未批准的批次中", "what is left is in a tranche that waits for its approval",
        "请减少金额或等待该批次获批", "ask for less, or wait until the tranche is approved",
    ),
    "EVIDENCE_MISSING": ("申报材料不全", "required evidence is missing", "请补充材料", "supply it"),
    "PROGRAMME_CLOSED": (
        "券项目已关闭", "the voucher's programme is closed",
        "请使用其他券, 或改为自费", "use another voucher, or pay yourself",
    ),
    "VOUCHER_SUSPENDED": (
        "模型券已暂停使用", "the voucher is suspended", "请联系平台运营方", "ask the market's operator",
    ),
    "VOUCHER_REVOKED": (
        "模型券已被撤销", "the voucher was revoked",
        "请使用其他券, 或改为自费; 撤销原因见通知", "use another voucher, or pay yourself; the notice says why",
    ),
    "VOUCHER_EXPIRED": (
        "模型券已过使用期", "the voucher's use-by day is over",
        "请申请新券, 或在订阅中选择券用完后自费",
        "apply for a new voucher, or set the subscription's on_voucher_end to self_pay",
    ),
    "SUBJECT_NOT_COVERED": (
        "该券不支付此类模型(原模型或派生模型)", "the voucher does not pay for this kind of model (base or derivative)",
        "请使用该券覆盖的模型, 或改为自费", "use a model that it covers, or pay yourself",
    ),
    "RELATION_NOT_COVERED": (
        "该派生模型未沿用上级模型权重, 不在模型券支付范围内",
        "this derivative does not reuse its parent's weights, so no voucher pays for it",
        "请改用微调、校准或量化方式派生, 或改为自费",
        "derive by fine-tuning, calibration or quantisation, or pay yourself",
    ),
    "FILING_INVALID": (
        "该模型没有在用日有效的备案", "the model has no filing (备案) that is valid today",
        "请供应商补充或更新备案, 或改为自费", "the vendor renews the filing; meanwhile pay yourself",
    ),
    "RELATED_PARTY": (
        "调用方与供应商为关联方, 模型券不予支付", "caller and vendor are related, so no voucher pays",
        "请改为自费, 或更正单位信息", "pay yourself, or correct the organisation's data",
    ),
    "CONTRACT_TOO_SMALL": (
        "合同金额低于该券的最低要求", "the contract is below the voucher's least amount",
        "请提高订阅的合同金额", "raise the subscription's contract_fen",
    ),
    "OTHER_SUBSIDY": (
        "该合同已申报其他财政补贴, 本券不再支付",
        "other subsidies are declared on this contract, so this voucher does not pay",
        "请改为自费; 申报有误的, 由运营方撤销",
        "pay yourself; a declaration made in error is withdrawn by the operator",
    ),
    "CONTRACT_USED_UP": (
        "本合同可用的补贴额度已用完", "the share of this contract that a voucher may pay is used up",
        "请提高订阅的合同金额, 或改为自费", "raise the subscription's contract_fen, or pay yourself",
    ),
    "CONTRACT_ONCE": (
        "该项目对一份合同只用一张券支付, 本合同已用过另一张",
        "the programme pays for a contract out of one voucher, and another one has paid for this",
        "请结束本合同并重新订阅, 或改为自费", "end this contract and subscribe anew, or pay yourself",
    ),
    "VOUCHER_EXHAUSTED": (
        "模型券余额已用完", "the voucher is used up",
        "请申请新券, 或在订阅中选择券用完后自费",
        "apply for a new voucher, or set the subscription's on_voucher_end to self_pay",
    ),
    "VOUCHER_REQUIRED": (
        "没有可用的模型券, 且订阅未选择自费",
        "there is no voucher, and the subscription does not opt for paying yourself",
        "请申请模型券, 或在订阅中选择自费", "apply for a voucher, or set the subscription's on_voucher_end to self_pay",
    ),
    "SUBSCRIPTION_REQUIRED": (
        "尚未订阅该模型", "your organisation has no subscription to this model",
        "请在模型页订阅后再调用", "subscribe on the model's page first",
    ),
    "MONTHLY_CAP_REACHED": (
        "本月自付金额已达上限", "this month's own cost has reached the subscription's cap",
        "请提高订阅的月度上限, 或等待下月", "raise the subscription's monthly_cap_fen, or wait for next month",
    ),
    "TWO_PERSONS": (
        "须由两名不同的工作人员分别提出与批准", "one person proposes and another approves",
        "请由另一名工作人员批准", "have a colleague approve it",
    ),
    "PROPOSER_ONLY": (
        "只有提出人可以撤回", "only who proposed it may withdraw it",
        "如不同意, 请写明原因并不予批准", "to say no as the second person, decline it with a reason",
    ),
    "PERSON_REQUIRED": (
        "此操作须由具体人员完成, 该密钥不属于任何人", "this takes a person, and the key belongs to none",
        "请登录后操作, 或使用个人密钥", "log in, or use a key that belongs to a member",
    ),
}  # fmt: skip


def words(code: str) -> tuple[str, str]:
    """The reason in Chinese and English."""
    zh, en, _, _ = _WORDS[code]
    return zh, en


def payment_refusal(code: str, **details: Any) -> PaymentRequired:
    """402: no voucher, contract or cap covers the call."""
    return _refusal(PaymentRequired, code, details)


def conflict(reason: Reason, **details: Any) -> Conflict:
    """409: an application or voucher cannot go on for this reason."""
    return _refusal(Conflict, str(reason), details)


def forbidden(code: str) -> Forbidden:
    return _refusal(Forbidden, code, {})


def _refusal(kind: type[R], code: str, details: dict[str, Any]) -> R:
    zh, en, remedy_zh, remedy_en = _WORDS[code]
    return kind(code, zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en, details=details)
