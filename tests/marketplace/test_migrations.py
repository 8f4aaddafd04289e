"""Migrations: what they build is what the tables in code say."""

import logging

import pytest
from alembic import command
from sqlalchemy import BigInteger, Integer, inspect
from sqlmodel import SQLModel, select

from marketplace.claims.tables import ClaimBatch
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.migrations.upgrade import _config, current_revision, differences, newest_revision, upgrade
from marketplace.vouchers.tables import Programme
from tests.marketplace.shelf import add_organisation
from tests.postgres import postgres_server


def test_migrating_an_empty_database_gives_the_tables_in_code(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    upgrade(engine)
    assert differences(engine) == []
    with engine.connect() as connection:
        assert current_revision(connection) == newest_revision()


def test_migrating_twice_changes_nothing_and_keeps_the_data(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    upgrade(engine)
    with transaction(engine) as session:
        add_organisation(session, "acme")
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT slug FROM organisation").fetchall() == [("acme",)]


def test_a_migrated_database_has_the_checks_and_triggers_of_a_fresh_one(tmp_path, engine):
    migrated = open_database(f"sqlite:///{tmp_path / 'migrated.db'}")
    upgrade(migrated)
    for table in SQLModel.metadata.tables:
        names = [{check["name"] for check in inspect(e).get_check_constraints(table)} for e in (migrated, engine)]
        assert names[0] == names[1], table
    triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    with migrated.connect() as one, engine.connect() as other:
        assert one.exec_driver_sql(triggers).fetchall() == other.exec_driver_sql(triggers).fetchall()


def test_no_number_is_kept_in_32_bits():
    create_tables(open_database("sqlite://"))
    for table in SQLModel.metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, Integer) and not column.primary_key:
                assert isinstance(column.type, BigInteger), f"{table.name}.{column.name}"


@pytest.fixture(scope="module")
def postgres_url():
    yield from postgres_server()


def test_the_same_migrations_run_on_postgresql(postgres_url):
    engine = open_database(postgres_url)
    upgrade(engine)
    upgrade(engine)
    assert differences(engine) == []
    with transaction(engine) as session:
        add_organisation(session, "acme", created_at_ms=1_800_000_000_000)
    engine.dispose()


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_payments_that_stand_get_their_key_and_those_that_clash_are_named(tmp_path, request, caplog, store):
    """0020: a paid batch comes before one that is only entered, then the oldest; what was paid or entered stays."""
    caplog.set_level(logging.WARNING, logger="algomart.migrations")
    url = f"sqlite:///{tmp_path / 'old.db'}" if store == "sqlite" else request.getfixturevalue("postgres_url")
    engine = open_database(url)
    upgrade(engine)
    old = {
        "clm_a": ("paying", 1, "国库 7"),
        "clm_b": ("paid", 2, "国库７"),
        "clm_c": ("reconciled", 3, "8"),
        "clm_d": ("paid", 4, "8"),
        "clm_e": ("approved", 5, ""),
        "clm_f": ("paying", 6, " Ref 9"),
    }
    with transaction(engine) as session:
        session.add(Programme(id="prg_old", code="old", title_zh="旧", title_en="Old"))
        session.flush()
        for batch, (state, at_ms, reference) in old.items():
            days = {"from_day": "2026-01-01", "to_day": "2026-01-31"}
            payment = {"reference": reference} if reference else {}
            facts = {"programme_id": "prg_old", "state": state, "created_at_ms": at_ms, "payment": payment}
            session.add(ClaimBatch(id=batch, **days, **facts))
    for run, revision in ((command.downgrade, "0019"), (command.upgrade, "head")):
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            run(_config(connection), revision)
    with reading(engine) as session:
        rows = {row.id: row for row in session.exec(select(ClaimBatch))}
    keys = {"clm_b": "国库7", "clm_c": "8", "clm_f": "ref9"}
    assert {batch: row.payment_key for batch, row in rows.items()} == {batch: keys.get(batch) for batch in old}
    assert {batch: (row.state, row.payment.get("reference", "")) for batch, row in rows.items()} == {
        batch: (state, reference) for batch, (state, _, reference) in old.items()
    }
    told = [record.getMessage() for record in caplog.records if record.name == "algomart.migrations"]
    assert ["clm_c and clm_d (paid)" in told[0], "clm_b and clm_a (paying)" in told[1], len(told)] == [True, True, 2]
    engine.dispose()
