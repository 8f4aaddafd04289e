"""The words for every reason that a write-off is refused for."""

from __future__ import annotations

from typing import Any

from model_store.errors import BadInput, Conflict, NotFound, Refusal

# code → (zh, en, remedy zh, remedy en)
_WORDS = {
    "WRITE_OFF_STATE": (
        "该期日志此时不能如此办理: 可能已封存、已核销, 或已有待批的提议",
        "this epoch cannot be dealt with so now: it is sealed or written off, or a proposal waits already",
        "请刷新节点页查看现状", "look at the page of nodes again",
    ),
    "NODE_REACHABLE": (
        "该节点十分钟内仍有联系, 不能视为丢失", "the node was heard of within ten minutes: it is not lost",
        "请重新启动该节点, 由其补传日志", "start the node again: it ships its journal itself",
    ),
    "LEASES_RUNNING": (
        "该节点的额度尚未到期", "the node's leases have not run out yet",
        "请稍后再办理", "try again later",
    ),
    "WRITE_OFF_OWN_NODE": (
        "这是市场自身的节点, 其日志就在本机", "this is the market's own node: its journal lies on this machine",
        "重新启动市场即可恢复", "starting the market recovers it",
    ),
}  # fmt: skip


def refused(code: str, **details: Any) -> Refusal:
    if code == "REASON_REQUIRED":
        return BadInput(
            "REASON_REQUIRED",
            zh="请写明原因",
            en="this takes a reason",
            remedy_zh="原因会写入台账",
            remedy_en="it is kept in the register",
            field="reason",
        )
    zh, en, remedy_zh, remedy_en = _WORDS[code]
    return Conflict(code, zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en, details=details)


def write_off_not_found(what: str) -> NotFound:
    return NotFound(
        "WRITE_OFF_NOT_FOUND",
        zh=f"没有“{what[:60]}”",
        en=f"there is no {what[:60]!r}",
        remedy_zh="请核对节点与期号",
        remedy_en="look at the list of nodes",
    )
