"""Append-only by the database itself: triggers that refuse to change what was written, on SQLite and PostgreSQL.

`install(connection)` is what a migration calls; `create_all` installs them too, by the event at the end of this file. A
usage row may gain the transfer that carries it, once, and nothing else.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event, inspect
from sqlmodel import SQLModel

APPEND_ONLY = (
    "ledger_transfer", "ledger_entry", "audit_event", "price_version", "day_root", "journal_segment", "ledger_check",
    "ledger_transfer", "ledger_entry", "audit_event", "price_version", "finding_sighting", "finding_disposition",
)  # fmt: skip
USAGE_FROZEN = (
    "usage_id", "key_id", "organisation_id", "listing_id", "model", "adapter", "price_version", "lease_id",
    "lease_kind", "subscription_id", "reservation_id", "provider_id", "units", "amount_micro", "occurred_at_ms",
    "status", "purpose", "reason", "request_digest", "response_digest", "node", "epoch", "seq", "ingested_at_ms",
    "filing_id",
)  # fmt: skip


def statements(
    dialect: str, tables: frozenset[str], usage_columns: frozenset[str] = frozenset(USAGE_FROZEN)
) -> list[str]:
    """The DDL for those of `tables` that are guarded. Safe to run again."""
    frozen = [column for column in USAGE_FROZEN if column in usage_columns]
    return _postgresql(tables, frozen) if dialect == "postgresql" else _sqlite(tables, frozen)


def install(connection: Connection) -> None:
    """Guard every table that is there. A migration may call it when columns that later ones add are not."""
    inspector = inspect(connection)
    present = frozenset(inspector.get_table_names())
    columns = frozenset(each["name"] for each in inspector.get_columns("usage")) if "usage" in present else frozenset()
    for statement in statements(connection.dialect.name, present, columns):
        connection.exec_driver_sql(statement)


def remove(connection: Connection) -> None:
    """Take the guards off: for a migration that must rebuild a guarded table, and puts them back with `install`."""
    for table in (*APPEND_ONLY, "usage"):
        for verb in ("update", "delete"):
            on = f" ON {table}" if connection.dialect.name == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_no_{verb}{on}")


def _sqlite(tables: frozenset[str], frozen: list[str]) -> list[str]:
    found = []
    for table in APPEND_ONLY:
        if table in tables:
            found += [_sqlite_trigger(table, verb, "") for verb in ("update", "delete")]
    if "usage" in tables:
        changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in frozen)
        moved = "(OLD.transfer_id IS NOT NULL AND NEW.transfer_id IS NOT OLD.transfer_id)"
        found += [_sqlite_trigger("usage", "update", f" WHEN {changed} OR {moved}"), _sqlite_trigger("usage", "delete")]
    return found


def _sqlite_trigger(table: str, verb: str, when: str = "") -> str:
    return (
        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {verb.upper()} ON {table}{when}"
        f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    )


def _postgresql(tables: frozenset[str], frozen: list[str]) -> list[str]:
    found = [
        "CREATE OR REPLACE FUNCTION algomart_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only',"
        " ERRCODE = 'integrity_constraint_violation'; END $$"
    ]
    for table in APPEND_ONLY:
        if table in tables:
            found += [_postgresql_trigger(table, verb) for verb in ("update", "delete")]
    if "usage" in tables:
        changed = " OR ".join(f"NEW.{column}::text IS DISTINCT FROM OLD.{column}::text" for column in frozen)
        moved = "(OLD.transfer_id IS NOT NULL AND NEW.transfer_id IS DISTINCT FROM OLD.transfer_id)"
        found += [
            _postgresql_trigger("usage", "update", f" WHEN ({changed} OR {moved})"),
            _postgresql_trigger("usage", "delete"),
        ]
    return found


def _postgresql_trigger(table: str, verb: str, when: str = "") -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table}"
        f" FOR EACH ROW{when} EXECUTE FUNCTION algomart_append_only()"
    )


@event.listens_for(SQLModel.metadata, "after_create")
def _after_create(_metadata: Any, connection: Connection, **_: Any) -> None:
    install(connection)
