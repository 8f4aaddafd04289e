"""The clocks of nodes elsewhere: use-by, filings and months are judged on the instant that a node writes down.

A node sends what its clock says with each portion of its journal and with each question for a lease. Where that is
further off than is allowed it gets no lease that costs, and what it ships meanwhile is quarantined (CLOCK_SKEWED).
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from marketplace.db import reading, transaction
from marketplace.organisations.notices import notify_operators
from marketplace.usage.ingest import Ingest
from marketplace.vouchers.tables import NodeEpoch
from model_store.errors import Conflict


def decide_skew(clock_ms: int, at_ms: int, limit_ms: int) -> int:
    """What a clock is off (ahead: positive), 0 within the limit or where nothing was told (`clock_ms` 0)."""
    off = clock_ms - at_ms
    return off if clock_ms and abs(off) > limit_ms else 0


def note_skew(engine: Engine, journals: Path, node: str, epoch: int, skew_ms: int) -> None:
    """Before a portion is appended: what is here already is judged by what was known when it came.

    Call under the journal's lock. Operators are told when a clock goes wrong, once.
    """
    with reading(engine) as session:
        known = session.get_one(NodeEpoch, (node, epoch)).skew_ms
    if bool(known) == bool(skew_ms):
        return
    Ingest(engine, journals, node).drain(node, epoch)
    with transaction(engine) as session:
        row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
        row.skew_ms = skew_ms
        session.add(row)
        if skew_ms:
            seconds = round(skew_ms / 1000)
            notify_operators(
                session,
                "NODE_CLOCK_SKEWED",
                zh=f"节点 {node} 的时钟与市场相差 {seconds} 秒, 其付费用量暂被隔离",
                en=f"the clock of node {node} is {seconds} s off the market's; its paid usage is quarantined meanwhile",
                link="/city/nodes",
            )


def clock_skewed(skew_ms: int) -> Conflict:
    """The refusal of a lease that costs."""
    return Conflict(
        "CLOCK_SKEWED",
        zh=f"节点时钟与市场相差 {round(skew_ms / 1000)} 秒, 不能领取付费额度",
        en=f"the node's clock is {round(skew_ms / 1000)} s off the market's: it gets no lease that costs",
        remedy_zh="请在节点上校时 (如 chrony), 校准后自动恢复",
        remedy_en="set the node's clock (chrony, for example); it goes on by itself then",
        details={"skew_ms": skew_ms},
    )
