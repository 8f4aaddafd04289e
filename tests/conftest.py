"""Fixtures shared by every test: an empty database, a market in this process, a client, a market in its own process.

`live_market` is the real thing, `algomart up` on a free port with the demonstration market in a temporary folder, once
for the whole session. A test that needs another one takes a copy of `demo_home`.

Imports stand inside the fixtures, so that the tests of a lower package run without the hall.

Under xdist the suite is dealt out by file (`--dist loadfile`), so that a module's market or server is started once and
not once a worker. Groups (`loadgroup`) have no effect with pytest 9.2: xdist 3.8 writes them where it no longer looks.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastapi.testclient import TestClient
    from sqlalchemy import Engine

    from marketplace.market import Market
    from tests.live import LiveMarket
    from tests.marketplace.stores import PostgresMarket


# With everything that the suite imports (600,000 objects) a fifth of the time would go into looking for garbage.
gc.set_threshold(20_000, 20, 20)
# The first needs no market: the other worker makes the one that is copied meanwhile.
EARLY = ("simulator", "e2e", "web", "test_docs.py", "load", "adapters")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that the workers end together, on short files."""
    here = Path(__file__).parent
    place = {part: number for number, part in enumerate(EARLY)}
    items.sort(key=lambda item: place.get(item.path.relative_to(here).parts[0], len(EARLY)))


def pytest_collection_finish() -> None:
    """What is there by now stays, and need not be looked through for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with every table and no row. To copy it is faster than to make the tables anew."""
    from marketplace.db import create_tables, open_database

    path = tmp_path_factory.mktemp("empty") / "market.db"
    engine = open_database(f"sqlite:///{path}")
    create_tables(engine)
    engine.dispose()  # its log is written back into the file
    return path


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> Iterator[Engine]:
    """An empty database with every table: SQLite, or what `stores.on_both_stores` says."""
    from marketplace.db import open_database

    if getattr(request, "param", "sqlite") == "postgresql":
        engine = request.getfixturevalue("postgres_market").empty()
    else:
        shutil.copyfile(empty_database, tmp_path / "market.db")
        engine = open_database(f"sqlite:///{tmp_path / 'market.db'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_market() -> Iterator[PostgresMarket]:
    """A PostgreSQL of the session's own."""
    from tests.marketplace.stores import postgres_market

    yield from postgres_market()


@pytest.fixture
def market(engine: Engine, tmp_path: Path) -> Market:
    """A market in this process: real database, index and sources, an in-memory registry; no data plane, no demo."""
    from marketplace.catalogue.documents import load_documents
    from marketplace.catalogue.search import SearchIndex
    from marketplace.catalogue.source import CatalogueSource
    from marketplace.market import Market
    from marketplace.nodes.registry import NodeRegistry
    from marketplace.settings import Settings
    from model_store.blobs import MemoryBlobs
    from model_store.memory_store import MemoryStore

    market = Market(
        settings=Settings(home=tmp_path, demo=False),
        engine=engine,
        blobs=MemoryBlobs(),
        store=MemoryStore(),
        bundles=CatalogueSource(engine, lambda version: tmp_path / "bundles" / version.digest),
        search=SearchIndex(load_documents),
        nodes=NodeRegistry(engine),
    )
    market.catalogue_changed()
    return market


@pytest.fixture
def client(market: Market) -> Iterator[TestClient]:
    """A client of that market's JSON API, without a key."""
    from fastapi.testclient import TestClient

    from marketplace.app import RequestIds, create_api

    with TestClient(RequestIds(create_api(market)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a market that was opened with its demonstration, and stopped: once for all workers.

    To be copied (`LiveMarket(…, like=demo_home)`): a market opens on it in 3 s, where publishing the demonstration's
    thirty models anew takes 11.
    """
    from tests.live import LiveMarket

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = shared / "demo-home"
    with (shared / "demo-home.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.exists():
            market = LiveMarket(tmp_path_factory.mktemp("demo") / "home")
            market.start()
            assert market.stop() == 0
            assert market.foreign_addresses() == []
            market.home.rename(home)
    return home


@pytest.fixture(scope="session")
def live_market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    """A market in its own process, with its demonstration keys."""
    from tests.live import LiveMarket
    from tests.ports import free_port

    home = tmp_path_factory.mktemp("live") / "home"
    market = LiveMarket(home, like=demo_home, ALGOMART_GRPC_PORT=str(free_port()))
    market.start()
    yield market
    market.stop()
    assert market.foreign_addresses() == []  # whatever the tests had it do
