"""Which serving nodes there are and who they are: admitted by whoever runs the market's machine, known by a token.

A node may open leases for every organisation it serves, so its token weighs more than any key: it is made on the
machine only (`algomart node`), shown once, and kept as SHA-256. The market's own workers (`--workers`) get theirs at
each start and are kept in memory.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.tokens import fingerprint
from marketplace.nodes.tables import ServingNode
from marketplace.organisations import audit
from marketplace.organisations.tables import Organisation
from model_store.errors import BadInput, Conflict, Forbidden, NotFound, Unauthenticated

TOKEN_PREFIX = "amn_"  # noqa: S105 - not a secret, what one begins with
OWN_NODE = "local"  # the market's own, and its workers: local-2, local-3 …
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class CallingNode:
    """A node that calls the market. `organisation`: the only one it serves; "": all."""

    name: str
    organisation: str = ""

    def check_serves(self, organisation: str) -> None:
        """`Forbidden` NODE_OTHER_ORGANISATION for the calls of anybody else's."""
        if self.organisation not in ("", organisation):
            raise Forbidden(
                "NODE_OTHER_ORGANISATION",
                zh="该节点只服务另一家单位",
                en="this node serves another organisation only",
                remedy_zh="请使用市场地址, 或贵单位自己的节点",
                remedy_en="call the market itself, or a node of your own",
            )


class NodeRegistry:
    """The nodes of one market, and when each was heard of last (since this start)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._workers: dict[str, str] = {}  # fingerprint → node name
        self._lock = threading.Lock()
        self._journals: dict[str, threading.Lock] = {}
        self.seen_at_ms: dict[str, int] = {}

    def admit_worker(self, name: str) -> str:
        """A token for a worker of this market, good until the market ends."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        with self._lock:
            self._workers = {known: each for known, each in self._workers.items() if each != name}
            self._workers[fingerprint(token)] = name
        return token

    def journal(self, name: str) -> threading.Lock:
        """Held while anything is done to the copy of a node's journal."""
        with self._lock:
            return self._journals.setdefault(name, threading.Lock())

    def node_of(self, token: str) -> CallingNode:
        """The node behind a token; `Unauthenticated` NODE_TOKEN_INVALID."""
        known = fingerprint(token[:256])
        worker = self._workers.get(known)
        if worker is not None:
            return CallingNode(worker)
        with reading(self._engine) as session:
            row = session.exec(select(ServingNode).where(ServingNode.sha256 == known)).first()
        if row is None or row.revoked_at_ms is not None:
            raise Unauthenticated(
                "NODE_TOKEN_INVALID",
                zh="节点令牌无效或已被吊销",
                en="this is no token of an admitted node, or it was revoked",
                remedy_zh="请在市场所在机器上运行 algomart node add 或 algomart node renew",
                remedy_en="run algomart node add or algomart node renew on the market's machine",
            )
        self.seen_at_ms[row.name] = now_ms()
        return CallingNode(row.name, row.organisation_id)


def add_node(engine: Engine, name: str, organisation_slug: str = "") -> str:
    """Admit a node; answers its token, which is nowhere kept.

    Raises `BadInput` NODE_NAME_INVALID, `Conflict` NODE_EXISTS, `NotFound` ORGANISATION_NOT_FOUND.
    """
    if not _NAME.fullmatch(name) or name.split("-")[0] == OWN_NODE:
        raise BadInput(
            "NODE_NAME_INVALID",
            zh=f"节点名“{name[:60]}”不可用",
            en=f"{name[:60]!r} cannot be a node's name",
            remedy_zh="1 至 40 个小写字母、数字或连字符, 以字母或数字开头, 且不以 local 开头",
            remedy_en="1 to 40 lower-case letters, digits and hyphens, not beginning with a hyphen or with local",
            field="name",
        )
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with transaction(engine) as session:
        if session.get(ServingNode, name) is not None:
            raise Conflict(
                "NODE_EXISTS",
                zh=f"节点 {name} 已存在",
                en=f"there is a node {name} already",
                remedy_zh="换一个名称; 令牌丢失时用 algomart node renew",
                remedy_en="take another name; algomart node renew makes a new token where one was lost",
                field="name",
            )
        organisation_id = _organisation(session, organisation_slug) if organisation_slug else ""
        session.add(ServingNode(name=name, organisation_id=organisation_id, sha256=fingerprint(token)))
        audit.record(session, actor="system", action="node.add", subject=name, organisation_id=organisation_id)
    return token


def renew_node(engine: Engine, name: str) -> str:
    """A new token for a node; the old one ends at once. Raises `NotFound` NODE_NOT_FOUND."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with transaction(engine) as session:
        row = _row(session, name)
        row.sha256, row.revoked_at_ms = fingerprint(token), None
        session.add(row)
        audit.record(session, actor="system", action="node.renew", subject=name)
    return token


def revoke_node(engine: Engine, name: str) -> None:
    """Shut a node out. What it has journalled is taken once it is renewed. Raises `NotFound` NODE_NOT_FOUND."""
    with transaction(engine) as session:
        row = _row(session, name)
        row.revoked_at_ms = now_ms()
        session.add(row)
        audit.record(session, actor="system", action="node.revoke", subject=name)


def list_nodes(session: Session) -> list[ServingNode]:
    return list(session.exec(select(ServingNode).order_by(col(ServingNode.name))))


def _row(session: Session, name: str) -> ServingNode:
    row = session.get(ServingNode, name)
    if row is None:
        raise NotFound(
            "NODE_NOT_FOUND",
            zh=f"没有节点 {name[:60]}",
            en=f"there is no node {name[:60]}",
            remedy_zh="algomart node list 列出全部节点",
            remedy_en="algomart node list shows them all",
            field="name",
        )
    return row


def _organisation(session: Session, slug: str) -> str:
    found = session.exec(select(Organisation).where(Organisation.slug == slug)).first()
    if found is None:
        raise NotFound(
            "ORGANISATION_NOT_FOUND",
            zh=f"没有单位 {slug[:60]}",
            en=f"there is no organisation {slug[:60]}",
            remedy_zh="请填写单位的英文短名",
            remedy_en="give the organisation's short name",
            field="organisation",
        )
    return found.id
