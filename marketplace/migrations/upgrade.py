"""Bring a database to the newest schema, or write the next migration from the tables as they are now."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlmodel import SQLModel

import marketplace.tables  # noqa: F401  (registers every table)

_FOLDER = Path(__file__).parent


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    return config


def upgrade(engine: Engine) -> None:
    """Run the migrations that are missing; a database at the newest one is left after a single look."""
    with engine.connect() as connection:
        if current_revision(connection) == newest_revision():
            return
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        command.upgrade(_config(connection), "head")


def newest_revision() -> str | None:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return ScriptDirectory.from_config(config).get_current_head()


def current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def differences(engine: Engine) -> list[object]:
    """What the tables in code have that the database has not, or the other way round; [] where they agree."""
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), SQLModel.metadata))


def write_migration(engine: Engine, message: str) -> Path:
    """Write the next migration from the differences between `engine` (at the newest revision) and the code."""
    with engine.connect() as connection:
        script = command.revision(_config(connection), message, autogenerate=True)
        if script is None or isinstance(script, list):
            raise RuntimeError("alembic wrote no single script")
        return Path(script.path)
