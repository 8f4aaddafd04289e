"""One history, two databases: what is rebuilt from it has the same roots on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlmodel import SQLModel

import serving.leases
from marketplace.claims.tables import ClaimBatch
from marketplace.db import create_tables, open_database, snapshot, transaction
from marketplace.integrity import pack
from marketplace.integrity.books import check_books, compare
from marketplace.integrity.days import check_days, close_days, list_days
from marketplace.integrity.pack import write_pack
from marketplace.integrity.tables import DayRoot
from marketplace.ledger import posting
from marketplace.ledger.posting import Posting, post_all
from marketplace.ledger.rebuild import rebuild
from marketplace.usage import recovery
from marketplace.vouchers import closing
from model_store.blobs import FolderBlobs
from tests.bench.bench_rebuild import charge, opening
from tests.marketplace.stores import PostgresMarket, unguarded
from tests.marketplace.test_claims import advance, freeze, new_batch, trade
from tests.marketplace.test_integrity import close
from tests.marketplace.town import DAY, START, Town

ENTERPRISES, CHARGES, DAYS = 11, 400, 5


@dataclass(frozen=True)
class Roots:
    """What a full rebuild comes to: the state's SHA-256 over accounts, that over accounts and caps, each day's root and
    the chain."""

    accounts: str
    books: str
    days: tuple[tuple[str, str, str], ...]
    entries: int


def roots_of(engine: Engine) -> Roots:
    with snapshot(engine) as session:
        found, books = rebuild(session), compare(session)
        assert found.sound
        assert books.sound
        assert check_days(session) == []
        days = tuple((row.day, row.root, row.chain) for row in list_days(session))
        return Roots(found.sha256, books.sha256, days, found.entries)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'market.db'}")
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_market: PostgresMarket) -> Iterator[Engine]:
    engine = postgres_market.empty()
    yield engine
    engine.dispose()


def history(seed: int) -> list[tuple[int, list[Posting]]]:
    """(instant, what is posted together): the pool, leases out of it and charges, in batches over some days."""
    chance, numbers = random.Random(seed), list(range(CHARGES))
    chance.shuffle(numbers)
    batches = [(START, list(opening(ENTERPRISES, START)))]
    while numbers:
        at_ms = START + (CHARGES - len(numbers)) * DAYS * DAY // CHARGES
        size = chance.randint(1, 40)
        batches.append((at_ms, [charge(number, ENTERPRISES, at_ms) for number in numbers[:size]]))
        del numbers[:size]
    return batches


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_postings_rebuild_to_the_same_roots_on_sqlite_and_postgresql(sqlite, postgres, monkeypatch, seed):
    for engine in (sqlite, postgres):
        for at_ms, postings in history(seed):
            monkeypatch.setattr(posting, "now_ms", lambda at_ms=at_ms: at_ms)
            with transaction(engine) as session:
                post_all(session, postings)
        with transaction(engine) as session:
            close_days(session, START + (DAYS + 2) * DAY)
    first, second = roots_of(sqlite), roots_of(postgres)
    assert first == second
    assert first.entries > CHARGES
    assert len(first.days) > DAYS


def test_roots_are_those_of_the_history_and_of_nothing_else(sqlite, postgres, monkeypatch):
    """One fen between two accounts on one of the two: the states differ, and so do the day and all after it."""
    monkeypatch.setattr(posting, "now_ms", lambda: START)
    for engine in (sqlite, postgres):
        with transaction(engine) as session:
            post_all(session, list(opening(ENTERPRISES, START)))
            post_all(session, [charge(number, ENTERPRISES, START) for number in range(30)])
        with transaction(engine) as session:
            close_days(session, START + 3 * DAY)
    before = roots_of(sqlite)
    assert before == roots_of(postgres)
    moved = "SET amount_fen = amount_fen {} 1 WHERE transfer_id = 20 AND account LIKE '{}'"
    shift = [f"UPDATE ledger_entry {moved.format(sign, of)}" for sign, of in (("-", "Q.used%"), ("+", "Q.lease%"))]
    unguarded(postgres, *shift)
    with snapshot(postgres) as session:
        assert rebuild(session).sha256 != before.accounts
        assert compare(session).sha256 != before.books
        assert len(check_days(session)) == 1


def copied(source: Engine, target: Engine) -> None:
    """Every row of one database in the other, as a market does that moves to PostgreSQL."""
    for table in SQLModel.metadata.sorted_tables:
        with source.connect() as reader:
            rows = [dict(row) for row in reader.execute(sa.select(table)).mappings()]
        if rows:
            with target.begin() as writer:
                writer.execute(sa.text("SET LOCAL session_replication_role = replica"))
                writer.execute(table.insert(), rows)


def test_a_market_s_whole_life_rebuilds_to_the_same_roots_and_packs_to_the_same_bytes(
    sqlite, postgres, tmp_path, monkeypatch
):
    """Use on two nodes, a claim, a returned line, contracts ended, vouchers lapsed: caps, segments and days of it."""
    town, blobs = Town(sqlite, tmp_path / "journal"), FolderBlobs(tmp_path / "blobs")
    for module in (serving.leases, posting, recovery):
        monkeypatch.setattr(module, "now_ms", lambda: town.now)
    trade(town)
    town.now += DAY
    node = town.node("n2")
    node.call(count=50)
    node.stop()
    town.now += 2 * DAY
    close(town)
    first = new_batch(town)
    freeze(town, blobs, first)
    advance(town, first, "submit", "return")
    second = new_batch(town)
    freeze(town, blobs, second)
    town.now += 40 * DAY
    with transaction(sqlite) as session:
        closing.expire_vouchers(session, town.now)
    town.now += 2 * DAY
    close(town)
    copied(sqlite, postgres)
    here, there = roots_of(sqlite), roots_of(postgres)
    assert here == there
    assert len(here.days) == len(town.rows(DayRoot)) > 40
    nightly = [check_books(engine, lambda: town.now) for engine in (sqlite, postgres)]
    assert nightly[0].sha256 == nightly[1].sha256 == here.books
    assert all(row.sound for row in nightly)
    monkeypatch.setattr(pack, "now_ms", lambda: town.now)
    packs = []
    for engine in (sqlite, postgres):
        with snapshot(engine) as session:
            row = session.get_one(ClaimBatch, second)
            packs.append(write_pack(session, row, blobs, tmp_path / f"{engine.dialect.name}.zip").read_bytes())
    assert packs[0] == packs[1]
