"""How long a night's look for findings takes, and in how much memory: `python -m tests.bench.findings [--records N]`.

A town's ledger and contracts are real; N usage records of one factory under one contract are written straight into the
table (20 keys, 90 days, one call in fifty of one same request; `--requests` and `--share` say otherwise), as ingest
would have left them. The search runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import serving.leases
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.findings import recording
from marketplace.findings.scanning import find_all
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import Reservation
from tests.bench.peak import peak_mib
from tests.marketplace.town import DAY, START, Town

DAYS = 90
CHUNK = 20_000
KEYS = 20


def records(count: int, reservation: Reservation, seed: int, requests: int, share: float) -> Iterator[dict[str, Any]]:
    """In the order of their time, as ingest writes them."""
    chance = random.Random(seed)
    for number in range(count):
        at = START - DAYS * DAY + number * DAYS * DAY // count
        same = chance.random() < share
        yield {
            "usage_id": f"01{number:024d}",
            "key_id": f"key_{chance.randrange(KEYS)}",
            "organisation_id": "org_factory",
            "listing_id": "lst_vendor/steel",
            "model": "vendor/steel@1",
            "lease_kind": "subsidised",
            "subscription_id": reservation.subscription_id,
            "reservation_id": reservation.id,
            "provider_id": "org_vendor",
            "units": {"calls": 1},
            "amount_micro": 370_000,
            "occurred_at_ms": at + chance.randrange(30_000),
            "request_digest": f"same {number % requests}" if same else f"{chance.getrandbits(256):064x}",
            "transfer_id": None,
            "seq": number,
            "ingested_at_ms": at,
        }


def fill(folder: Path, url: str, count: int, requests: int, share: float) -> None:
    engine = open_database(url)
    create_tables(engine)
    town = Town(engine, folder / "journal")
    serving.leases.now_ms = lambda: town.now  # type: ignore[assignment]
    town.voucher(100_000)
    town.subscribe(contract_fen=1_000_000)
    (reservation,) = town.rows(Reservation)
    chunk: list[dict[str, Any]] = []
    for row in records(count, reservation, 1, requests, share):
        chunk.append(row)
        if len(chunk) == CHUNK:
            _write(engine, chunk)
            chunk = []
    _write(engine, chunk)
    engine.dispose()


def _write(engine: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        with transaction(engine) as session:
            session.connection().execute(Usage.__table__.insert(), rows)  # type: ignore[attr-defined]


def search(url: str) -> None:
    """In the child: look, keep, say what it took."""
    engine = open_database(url)
    with reading(engine) as session:
        session.connection()
        before, peak_before = resource.getrusage(resource.RUSAGE_SELF), peak_mib()
        start = time.perf_counter()
        found = find_all(session, START)
        took = time.perf_counter() - start
    after, peak = resource.getrusage(resource.RUSAGE_SELF), peak_mib()
    with transaction(engine) as session:
        kept = recording.record(session, found, START, actor="bench")
    said = {
        "wall_s": round(took, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_mib": peak,
        "peak_before_mib": peak_before,
        "found": kept["found"],
    }
    print(json.dumps(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=1, help="how many requests are made again and again")
    parser.add_argument("--share", type=float, default=0.02, help="share of the calls that are one of these")
    parser.add_argument("--folder", type=Path, help="Keep the records here, or search those that are here already")
    parser.add_argument("--fill-only", action="store_true")
    parser.add_argument("--search", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        search(given.search)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        url = f"sqlite:///{folder / 'market.db'}"
        if not (folder / "market.db").exists():
            folder.mkdir(exist_ok=True)
            fill(folder, url, given.records, given.requests, given.share)
        for _ in range(0 if given.fill_only else 2):
            subprocess.run([sys.executable, "-m", "tests.bench.findings", "--search", url], check=True)


if __name__ == "__main__":
    main()
