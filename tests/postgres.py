"""A throw-away PostgreSQL for tests: the system's initdb and pg_ctl, socket only, fsync off, in a folder of its own.

    @pytest.fixture(scope="module")
    def postgres_url(): yield from postgres_server()

Skips where PostgreSQL is not installed. PostgreSQL refuses to run as root, so it runs as the user postgres then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def find_postgres() -> Path | None:
    """The folder of initdb and pg_ctl, newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def postgres_server(*, durable: bool = False) -> Iterator[str]:
    """Start a server, yield its SQLAlchemy URL, stop it. `durable`: with fsync, as one that is measured should be."""
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    identity = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    home = Path(tempfile.mkdtemp(prefix="amp"))  # short: a socket's path has at most 107 characters
    home.chmod(0o700)
    if identity:
        shutil.chown(home, **identity)

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, **identity)

    data = str(home / "data")
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    quick = "" if durable else " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
    options = f"-k {home} -c listen_addresses=''{quick}"
    run("pg_ctl", "-D", data, "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={home}"
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
