"""Fixtures shared by every test: an empty database, a market in this process, a client, a market in its own process.

`live_market` is the real thing, `algomart up` on a free port with the demonstration market in a temporary folder, once
for the whole session.

Imports stand inside the fixtures, so that the tests of a lower package run without the hall.
"""

from __future__ import annotations

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


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database with every table: SQLite, or what `stores.on_both_stores` says."""
    from marketplace.db import create_tables, open_database

    if getattr(request, "param", "sqlite") == "postgresql":
        engine = request.getfixturevalue("postgres_market").empty()
    else:
        engine = open_database(f"sqlite:///{tmp_path / 'market.db'}")
        create_tables(engine)
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
def live_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMarket]:
    """A market in its own process, with its demonstration keys."""
    from tests.live import LiveMarket
    from tests.ports import free_port

    market = LiveMarket(tmp_path_factory.mktemp("live") / "home", ALGOMART_GRPC_PORT=str(free_port()))
    market.start()
    yield market
    market.stop()
    assert market.foreign_addresses() == []  # whatever the tests had it do
