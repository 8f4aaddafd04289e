"""What a caller may not have: keys, models, and what pays for them."""

from __future__ import annotations

from model_store.errors import Forbidden, NotFound, PaymentRequired, Refusal, Unauthenticated


def key_missing() -> Unauthenticated:
    return Unauthenticated(
        "KEY_MISSING",
        zh="请求没有携带密钥",
        en="the request carries no key",
        remedy_zh="请加上请求头 Authorization: Bearer <密钥> 或 X-API-Key: <密钥>",
        remedy_en="add the header Authorization: Bearer <key>, or X-API-Key: <key>",
        field="authorization",
    )


def key_expired() -> Unauthenticated:
    return Unauthenticated(
        "KEY_EXPIRED",
        zh="密钥已过期",
        en="the key has expired",
        remedy_zh="请在控制台轮换或新建密钥",
        remedy_en="rotate it, or make a new one, in the console",
        field="authorization",
    )


def scope_missing(scope: str) -> Forbidden:
    return Forbidden(
        "SCOPE_MISSING",
        zh=f"该密钥没有“{scope}”权限",
        en=f"this key does not have the scope {scope!r}",
        remedy_zh="请换用有此权限的密钥, 或请管理员新建",
        remedy_en="use a key that has it, or ask an administrator for one",
        field="authorization",
    )


def not_owner(name: str) -> Forbidden:
    return Forbidden(
        "NOT_OWNER",
        zh=f"只有 {name} 的所有者或平台运营方可以执行此操作",
        en=f"only the owner of {name} or the operator may do this",
        remedy_zh="请换用所有者的密钥",
        remedy_en="use a key of its owner",
        field="model",
    )


def adapter_base_missing(name: str, version: int) -> Refusal:
    return NotFound(
        "ADAPTER_BASE_MISSING",
        zh=f"适配器的基座 {name}@{version} 不在这里 (按摘要查找)",
        en=f"the adapter's base {name}@{version} is not here (looked up by its digest)",
        remedy_zh="请先提供该版本的基座模型包",
        remedy_en="serve that very version of the base too",
        field="adapter_of",
    )


def model_not_found(name: str, selector: str | None = None) -> NotFound:
    """The one refusal for a model that is not there or not to be seen by the caller."""
    shown = name[:100] + (f"@{selector[:40]}" if selector else "")
    return NotFound(
        "MODEL_NOT_FOUND",
        zh=f"没有名为“{shown}”的模型, 或您无权查看",
        en=f"there is no model {shown!r}, or you may not see it",
        remedy_zh="请在货架上搜索准确名称, 形式为 vendor/name 或 vendor/name@版本",
        remedy_en="search the shelf for its exact name: vendor/name or vendor/name@version",
        field="model",
        details={"model": name[:100], "version": (selector or "")[:40]},
    )


def model_unloaded(name: str) -> NotFound:
    """Asked only whether it is ready, and only in Triton's words."""
    return NotFound(
        "MODEL_UNLOADED",
        zh=f"模型“{name}”已被卸载",
        en=f"model {name!r} was unloaded",
        remedy_zh="请加载它 (/v2/repository/models/{model}/load), 或直接调用, 首次调用会自动加载",
        remedy_en="load it (/v2/repository/models/{model}/load), or just call it: the first call loads it",
        field="model",
    )


def price_missing(name: str) -> PaymentRequired:
    return PaymentRequired(
        "PRICE_MISSING",
        zh=f"{name} 没有可用的价格",
        en=f"there is no price for {name} that holds now",
        remedy_zh="请联系供应商公布价格",
        remedy_en="ask its vendor to publish a price",
        field="model",
    )


def lease_too_small(amount_micro: int) -> PaymentRequired:
    return PaymentRequired(
        "LEASE_TOO_SMALL",
        zh=f"可用额度不足以支付本次调用 ({amount_micro} 微分)",
        en=f"what is left does not cover this call ({amount_micro} micro-fen)",
        remedy_zh="请申请新的模型券, 提高自费上限, 或减少一次请求的行数",
        remedy_en="apply for another voucher, raise the cap on own cost, or send fewer rows",
    )
