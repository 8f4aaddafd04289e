"""The composition root: the one place where a market's real parts are put together.

`Market` holds parts and knows no rule. Endpoints get it with `Depends(market_of)` and open `transaction(market.engine)`
or `reading(market.engine)` themselves: one request, one transaction.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from marketplace.catalogue.documents import load_documents
from marketplace.catalogue.rollouts import RolloutWatch
from marketplace.catalogue.search import SearchIndex
from marketplace.catalogue.source import CatalogueSource, Stored
from marketplace.nodes.feed import Feed
from marketplace.nodes.registry import NodeRegistry
from marketplace.settings import Settings
from model_store.blobs import Blobs
from model_store.bundle import unpack
from model_store.errors import Unavailable

if TYPE_CHECKING:
    from marketplace.tracking.supervisor import MlflowChild
    from model_store.store import ModelStore
    from serving.dataplane import DataPlane
    from serving.ports import Adapting, Admission, Chooser, Ports

_log = logging.getLogger("algomart.market")


def _some(listing_id: str | None) -> tuple[str, ...]:
    return () if listing_id is None else (listing_id,)


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(slots=True)
class Market:
    """Every part of one running market.

    `bundles` answers names from memory (serving's BundleSource) and is refreshed by `catalogue_changed`; `search` is
    the index over public listings. `dataplane`, `admission`, `chooser`, `adapting` and `ports` are set before the first
    request.
    """

    settings: Settings
    engine: Engine
    blobs: Blobs
    store: ModelStore
    bundles: CatalogueSource
    search: SearchIndex
    nodes: NodeRegistry
    admission: Admission | None = None
    dataplane: DataPlane | None = None
    chooser: Chooser | None = None
    adapting: Adapting | None = None
    ports: Ports | None = None
    mlflow: MlflowChild | None = None  # None where a foreign MLflow is used
    registry_settled: threading.Event = field(default_factory=_set)  # what a crash left half-published is settled
    opened_s: float = field(default_factory=time.time)  # what lies among the blobs since before it may be a leftover
    feed: Feed = field(default_factory=Feed)
    rollouts: RolloutWatch = field(default_factory=RolloutWatch)
    extra: dict[str, Any] = field(default_factory=dict)

    def catalogue_changed(self, listing_id: str | None = None) -> None:
        """Call after the commit of anything that changes what is served or found: one listing, or all of them."""
        self.bundles.refresh(listing_id)
        self.search.refresh(self.engine, listing_id)
        self.feed.tell("catalogue", *_some(listing_id))

    def comparison_of(self, name: str) -> dict[str, Any] | None:
        """What a listing's shadow has answered beside its stable version, in all processes; None without a shadow.
        Blocking: not on the event loop."""
        split = self.bundles.split(name)
        if split is None or self.dataplane is None:
            return None
        return self.dataplane.joined.comparison_now(split.stable)

    def await_registry(self, timeout_s: float = 60.0) -> None:
        """Call before anything is published: the registry comes up seconds after the market. `Unavailable`."""
        if not self.registry_settled.wait(timeout_s):
            raise Unavailable(
                "REGISTRY_UNAVAILABLE",
                zh="模型登记服务尚未就绪, 暂时不能发布",
                en="the model registry is not up yet; nothing can be published now",
                remedy_zh="请稍后重试; 调用不受影响",
                remedy_en="try again in a moment; calls go on meanwhile",
                retry_after_s=10,
            )

    def terms_changed(self, listing_id: str | None = None) -> None:
        """Call after the commit of a new price or filing: calls of this listing (of all, if None) are leased anew.

        A lease carries its price and filing until it ends; without this a change would hold minutes later.
        """
        if self.dataplane is not None:
            self.dataplane.expire_leases(listing_id=listing_id)
        self.feed.tell("terms", *_some(listing_id))

    def keys_changed(self, *key_ids: str) -> None:
        """Call after the commit of a revocation, rotation or suspension: nodes forget these (all, if none given)."""
        if self.dataplane is not None:
            self.dataplane.forget_keys(*key_ids)
        self.feed.tell("keys", *key_ids)

    @property
    def journals(self) -> Path:
        """Folder of the journals: the own node's, the workers', and the copies of nodes elsewhere."""
        return self.settings.home / "journal"


def assemble(settings: Settings, engine: Engine, blobs: Blobs, store: ModelStore) -> Market:
    """A market over these stores with its catalogue in memory; the data plane is added by `marketplace.start`."""
    market = Market(
        settings=settings,
        engine=engine,
        blobs=blobs,
        store=store,
        bundles=CatalogueSource(engine, partial(materialise, settings.home.resolve(), blobs)),
        search=SearchIndex(load_documents),
        nodes=NodeRegistry(engine),
    )
    market.bundles.refresh()
    market.search.refresh_behind(engine)  # calls need no search; who searches meanwhile waits for it
    return market


def materialise(home: Path, blobs: Blobs, version: Stored) -> Path:
    """The unpacked, immutable bundle of a version: `$ALGOMART_HOME/bundles/<digest>`, unpacked if need be.

    `home`: absolute.

    Raises what `unpack` raises, `NotFound` BLOB_NOT_FOUND.
    """
    folder = home / "bundles" / version.digest
    if not folder.is_dir():
        unpack(blobs.path(version.blob), folder)
        _log.info("unpacked bundle %s", version.digest)
    return folder
