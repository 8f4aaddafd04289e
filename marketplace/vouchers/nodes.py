"""Serving nodes and their epochs: a node's newest open epoch is the only one that may open leases or append usage.

Recovery at a start is in `marketplace.usage.recovery`: it ingests and seals every older epoch of the node first.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, func, select

from marketplace.integrity.segments import record_segment
from marketplace.integrity.tables import JournalSegment
from marketplace.organisations import audit
from marketplace.vouchers.closing import settle_leases
from marketplace.vouchers.tables import NodeEpoch
from model_store.errors import Conflict

LATE = ("written_off", "late")


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a seal says of its journal: `bytes` before the seal's frame, and the SHA-256 of them."""

    first_seq: int
    last_seq: int
    count: int
    bytes: int
    sha256: str


def open_epochs(session: Session, node: str | None = None) -> list[NodeEpoch]:
    """Epochs whose journals are not sealed yet, oldest first; of one node or of all."""
    query = select(NodeEpoch).where(NodeEpoch.state == "open")
    if node is not None:
        query = query.where(NodeEpoch.node == node)
    return list(session.exec(query.order_by(col(NodeEpoch.node), col(NodeEpoch.epoch))))


def unsealed_epochs(session: Session, node: str | None = None) -> list[NodeEpoch]:
    """Epochs whose journals may still come: the open ones, and those that were written off."""
    query = select(NodeEpoch).where(NodeEpoch.state != "sealed")
    if node is not None:
        query = query.where(NodeEpoch.node == node)
    return list(session.exec(query.order_by(col(NodeEpoch.node), col(NodeEpoch.epoch))))


def newest_epoch(session: Session, node: str) -> int:
    """The node's newest epoch, 0 where it never had one."""
    return session.exec(select(func.max(NodeEpoch.epoch)).where(NodeEpoch.node == node)).one() or 0


def new_epoch(session: Session, node: str, at_ms: int) -> int:
    """Fence what came before and open the next epoch. `Conflict` EPOCH_OPEN while an older one is not sealed."""
    standing = open_epochs(session, node)
    if standing:
        raise Conflict(
            "EPOCH_OPEN",
            zh=f"节点 {node} 的第 {standing[0].epoch} 期日志尚未封存",
            en=f"epoch {standing[0].epoch} of node {node} is not sealed yet",
            remedy_zh="请先入账并封存旧日志",
            remedy_en="ingest and seal the older journal first",
        )
    epoch = newest_epoch(session, node) + 1
    session.add(NodeEpoch(node=node, epoch=epoch, opened_at_ms=at_ms))
    session.flush()
    return epoch


def check_epoch(session: Session, node: str, epoch: int) -> None:
    """`Conflict` EPOCH_FENCED unless this is the node's newest epoch and open."""
    row = session.get(NodeEpoch, (node, epoch))
    if row is None or row.state != "open" or newest_epoch(session, node) != epoch:
        raise Conflict(
            "EPOCH_FENCED",
            zh=f"节点 {node} 的第 {epoch} 期已被新的一期取代",
            en=f"epoch {epoch} of node {node} is fenced: a newer one has taken over",
            remedy_zh="请重新启动该节点",
            remedy_en="start the node again",
        )


def check_journal(session: Session, node: str, epoch: int) -> None:
    """`Conflict` EPOCH_FENCED unless bytes of this epoch's journal may come: as `check_epoch`, or after a write-off,
    when they are kept until the journal is whole."""
    row = session.get(NodeEpoch, (node, epoch))
    if row is None or row.state not in LATE:
        check_epoch(session, node, epoch)


def node_count(session: Session) -> int:
    """How many nodes share what there is to lease; at least 1."""
    distinct = select(func.count(func.distinct(NodeEpoch.node))).where(NodeEpoch.state == "open")
    return max(1, session.exec(distinct).one())


def seal_epoch(session: Session, node: str, epoch: int, *, sealed: Sealed | None, torn: bool, at_ms: int) -> None:
    """Seal an epoch whose journal is ingested to its end, then settle its leases (P6): never the other way round.

    `sealed` None: nothing was ever written. Else its hash is kept, and becomes a leaf of this day's tree.
    """
    row = session.get_one(NodeEpoch, (node, epoch), with_for_update=True)
    if row.state == "sealed":
        return
    sha256 = "" if sealed is None else sealed.sha256
    row.state, row.sha256, row.torn_tail = "sealed", sha256, torn
    session.add(row)
    session.flush()
    if sealed is not None:
        facts = {name: getattr(sealed, name) for name in Sealed.__slots__}
        record_segment(session, JournalSegment(node=node, epoch=epoch, kind="sealed", recorded_at_ms=at_ms, **facts))
    settle_leases(session, node, epoch, at_ms)
    audit.record(session, actor="system", action="epoch.seal", subject=f"{node}-{epoch}", sha256=sha256, torn=torn)
