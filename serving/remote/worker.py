"""A further process of one market behind its port: `python -m serving.remote.worker`, started by the market itself.

It is a node like any elsewhere, but for its journal and bundles, which lie where the market's own do. What it must know
comes as one line of JSON on its standard input.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from pathlib import Path

import msgspec

from model_store.errors import Unavailable
from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.journal import JournalWriter
from serving.key_counts import KeyCounts
from serving.parent import die_with_parent
from serving.ports import Ports
from serving.remote.admission import RemoteAdmission
from serving.remote.catalogue import RemoteCatalogue
from serving.remote.link import MarketLink
from serving.remote.node import MarketTies
from serving.server import serve, shared_socket
from serving.settings import ServingSettings
from serving.siblings import ProcessGroup

MARKET_WAIT_S = 120.0  # for the first process to answer; it starts meanwhile


class WorkerOrder(msgspec.Struct):
    """`urls`: of all processes, privately, the first one's first; `listener`: descriptor of this one's own socket;
    `keys`: of the memory in which they count what keys have called."""

    parent: int
    number: int
    urls: list[str]
    nodes: list[str]
    secret: str
    token: str
    epoch: int
    host: str
    port: int
    grpc_port: int  # 0: none
    listener: int
    keys: int
    journals: str
    bundles: str
    market_url: str
    log_level: str
    settings: ServingSettings


def write_order(order: WorkerOrder) -> bytes:
    """One line."""
    return msgspec.json.encode(order, enc_hook=str) + b"\n"


def read_order(line: bytes) -> WorkerOrder:
    """Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(line, type=WorkerOrder, dec_hook=lambda kind, value: kind(value))


def main() -> None:
    order = read_order(sys.stdin.buffer.readline())
    die_with_parent(order.parent)
    logging.basicConfig(level=order.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    link = MarketLink(order.urls[0], order.token)
    catalogue = RemoteCatalogue(link, Path(order.bundles))
    _read_when_up(catalogue)
    ports = Ports(admission=RemoteAdmission(link), bundles=catalogue, market_url=order.market_url)
    plane = DataPlane(
        ports, order.settings, JournalWriter(Path(order.journals), order.nodes[order.number], order.epoch)
    )
    app = ServingApp(plane, ports, inner=MarketTies(plane, catalogue, link))
    ProcessGroup(order.number, order.urls, order.nodes, order.secret).join(app)
    plane.limits.counts = KeyCounts(len(order.nodes), order.number, order.keys)
    own = socket.socket(fileno=order.listener)
    serve(
        app,
        order.host,
        order.port,
        grpc_port=order.grpc_port,
        log_level=order.log_level,
        sockets=[shared_socket(order.host, order.port), own],
    )


def _read_when_up(catalogue: RemoteCatalogue) -> None:
    deadline = time.monotonic() + MARKET_WAIT_S
    while True:
        try:
            catalogue.read_now()
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
