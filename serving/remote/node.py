"""A serving node of a market elsewhere: `algomart serve --market URL`.

The edge box and the cloud worker are this program: keys, prices and leases are the market's, models come from its
shelf when they are first called, every call is journalled here and charged there. What needs the market's database
(choosing, adapting, pages) is answered with its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from serving.app import ServingApp
from serving.asgi import Send
from serving.bodies import Receive
from serving.dataplane import DataPlane
from serving.errors.requests import no_such_path
from serving.folder_lock import hold_folder
from serving.journal import JournalWriter
from serving.ports import Ports
from serving.remote.admission import RemoteAdmission
from serving.remote.catalogue import RemoteCatalogue
from serving.remote.link import MarketLink
from serving.remote.shipping import Shipper, epoch_begun, open_epoch
from serving.settings import ServingSettings

_log = logging.getLogger("algomart.remote")


def open_market_node(link: MarketLink, home: Path, settings: ServingSettings, stack: ExitStack) -> ServingApp:
    """A node ready to be served. `home` keeps journal and bundles; `stack` lets go of it again. Blocking.

    Raises `Conflict` HOME_IN_USE, EPOCH_OPEN, `Unauthenticated` NODE_TOKEN_INVALID, `Unavailable` MARKET_UNREACHABLE.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    stack.enter_context(hold_folder(home))
    journals = home / "journal"
    journals.mkdir(exist_ok=True)
    node, epoch = open_epoch(link, journals)
    catalogue = RemoteCatalogue(link, home / "bundles")
    catalogue.read_now()
    catalogue.forget_unused()
    ports = Ports(admission=RemoteAdmission(link), bundles=catalogue, market_url=link.url)
    journal = JournalWriter(journals, node, epoch)
    epoch_begun(journals)
    plane = DataPlane(ports, settings, journal)
    shipper = Shipper(link, journal)
    app = ServingApp(plane, ports, inner=MarketTies(plane, catalogue, link, shipper))
    app.gauges = lambda: {
        "algomart_journal_unshipped_bytes": float(journal.size_bytes - shipper.shipped_bytes),
        "algomart_clock_offset_ms": float(link.clock.offset_ms),
    }
    app.standing = lambda: {
        "market": link.url,
        "unshipped_bytes": journal.size_bytes - shipper.shipped_bytes,
        "clock_offset_ms": link.clock.offset_ms,
    }
    return app


class MarketTies:
    """The inner application of such a node: follows the market and ships the journal between start and stop.

    The data plane starts before it and has sealed its journal before this stops (`ServingApp`).
    """

    def __init__(
        self, plane: DataPlane, catalogue: RemoteCatalogue, link: MarketLink, shipper: Shipper | None = None
    ) -> None:
        """`shipper` None: the journal lies where the market reads it."""
        self._catalogue, self._link, self._shipper = catalogue, link, shipper
        self._tasks: list[asyncio.Task[None]] = []
        catalogue.on_terms = lambda listing_id: plane.expire_leases(listing_id=listing_id)
        catalogue.on_keys = plane.forget_keys
        link.clock.on_skew = plane.expire_leases

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise no_such_path(scope["path"])

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._tasks = [asyncio.create_task(self._catalogue.follow())]
                if self._shipper is not None:
                    self._tasks.append(asyncio.create_task(self._shipper.run()))
            else:
                await self._stop()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._shipper is not None:
            try:
                await self._shipper.finish()
            except Exception:
                _log.exception("the rest of the journal is sent at the next start")
        await self._link.close()
