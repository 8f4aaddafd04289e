"""Migrations: what they build is what the tables in code say."""

import pytest
from sqlalchemy import BigInteger, Integer, inspect
from sqlmodel import SQLModel

from marketplace.db import create_tables, open_database, transaction
from marketplace.migrations.upgrade import current_revision, differences, newest_revision, upgrade
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
