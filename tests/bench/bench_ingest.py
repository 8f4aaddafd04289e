"""How fast usage becomes charges: `python -m tests.bench.bench_ingest` journals calls, then ingests them by itself.

The journal is written by the real lease book and writer under a real voucher; the ledger is an empty SQLite database
in a temporary folder. One process, one thread, as the market's ingest is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from sqlmodel import func, select

from marketplace.db import create_tables, open_database, reading
from marketplace.usage.tables import Usage
from tests.marketplace.town import Town

CALLS = 60_000


def bench_ingest(calls: int = CALLS) -> dict[str, object]:
    """Records a second and CPU µs a record, of `calls` at 0.37 fen of which a voucher pays a third."""
    with tempfile.TemporaryDirectory(prefix="algomart-ingest-") as scratch:
        folder = Path(scratch)
        engine = open_database(f"sqlite:///{folder / 'market.db'}")
        create_tables(engine)
        town = Town(engine, folder / "journal")
        town.voucher(400_000)
        town.subscribe(900_000)
        node = town.node()
        node.call(count=calls)
        wall, cpu = time.perf_counter(), time.process_time()
        node.flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        with reading(engine) as session:
            posted = session.exec(select(func.count()).select_from(Usage).where(Usage.status == "ok")).one()
        owed = town.balance("M.recv.ent[org_factory]")
        engine.dispose()
    if posted != calls or owed != calls * 37 // 100:
        raise AssertionError(f"{posted} of {calls} posted, {owed} fen owed")
    return {
        "database": "SQLite, WAL",
        "records": calls,
        "records_per_s": round(calls / wall),
        "cpu_us": round(cpu / calls * 1e6, 1),
    }


if __name__ == "__main__":
    json.dump(bench_ingest(), sys.stdout, indent=1)
    print()
