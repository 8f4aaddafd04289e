"""What a finding does not prove and what to do about it, as its page says it beside the evidence; docs/findings.md has
the same sentences, and a test keeps them the same."""

from __future__ import annotations

from dataclasses import dataclass

from marketplace.vouchers.signals import Code


@dataclass(frozen=True, slots=True)
class Meaning:
    """`not_*`: why it may be nothing; `do_*`: what a person looks at next. Chinese and English."""

    not_zh: str
    not_en: str
    do_zh: str
    do_en: str


MEANINGS = {
    Code.CONSTANT_INTERVALS: Meaning(
        "产线节拍、PLC 与定时任务本来就很均匀, 这常常正是正当使用。",
        "A line's beat, a PLC or a timer is even by nature: this is often what honest use looks like.",
        "问该密钥接在什么设备上, 节拍是否与证据中的平均间隔一致; 夜间停产时是否仍在调用。",
        "Ask what the key is built into and whether its cycle time is the mean interval shown.",
    ),
    Code.IDENTICAL_REQUESTS: Meaning(
        "联调、自检、健康检查会重复同一请求; 传感器停机时读数也可能不变。",
        "Tests, self-checks and a stuck sensor repeat themselves too.",
        "打开样本追溯, 看时间与响应; 属实的逐条更正, 已付款的追回。",
        "Follow the samples to their traces; correct what should not have been charged.",
    ),
    Code.BURST_BEFORE_USE_BY: Meaning(
        "项目投产、旺季、晚到的合同都可能如此。",
        "A line that went into operation late looks the same.",
        "对照合同与投产时间; 看这些天的调用是否同时有相同请求或恒定间隔。",
        "Compare with the contract and when production began; look for equal intervals or the same request on these "
        "days.",
    ),
    Code.SPEND_JUST_OVER: Meaning(
        "需求可能恰好如此。",
        "Somebody's need may just end there.",
        "问是否还有使用计划。",
        "Ask whether the use goes on.",
    ),
    Code.CONTRACTS_JUST_OVER: Meaning(
        "按最低金额分别订不同模型并不违规。",
        "Taking several models at the least amount each breaks no rule.",
        "看是否为同一需求拆分。",
        "See whether one need was split.",
    ),
    Code.RELATED_PARTY: Meaning(
        "申报可能有误或过时; 法定代表人同名可能是两个人。",
        "A declaration may be wrong or old, and two people may have one name.",
        "核对企业信用信息公示系统; 申报有误的由单位更新 (控制台 → 成员)。线索在申报更改后仍保留。",
        "Compare with the public register; the finding stays when somebody takes a declaration back.",
    ),
    Code.SHARED_PERSON: Meaning(
        "同名者很多; 因此只列线索, 不拒付。",
        "Names repeat: this refuses nothing.",
        "请双方补报股东代码。",
        "Ask both for the shareholder's code.",
    ),
    Code.SHARED_CONTACT: Meaning(
        "同一园区、同一代理记账公司也会如此。",
        "Neighbours in one park, or one bookkeeper, share them too.",
        "查工商登记与实际办公地点。",
        "Look at the register and at the place.",
    ),
    Code.INVOICE_REUSED: Meaning(
        "一张发票可以分摊到多份合同 (能用多少由申报逐笔核对), 也可能录错。",
        "One invoice may lawfully be divided between contracts (a claim counts what of it backs which line), and "
        "numbers are mistyped.",
        "在税务查验平台查验, 核对分摊。",
        "Verify it with the tax authority and see how it was divided.",
    ),
}  # fmt: skip
