"""`python -m tests.bench.market_listings`: a market with many listings (default 10,000), in its own process.

    --listed N   listings, each one public with one listed version and its price (default 10000)

The demonstration market is opened once; its starter listings are copied in the database, under new names, until there
are N. The copies share the starters' bundles: their bytes are not what is measured. Then it is started again, and
measured: start → ready, memory (of the first process), `/api/v1/models` with and without words, the shelf's page,
`/v2/repository/index`, the first call of models that nobody has called, a page of a model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Connection, bindparam, inspect, text

from marketplace.db import open_database
from tests.live import LiveMarket

ROW = {"inputs": {"AT": 14.96, "V": 41.76, "AP": 1024.07, "RH": 73.17}}
CALLED = "dongzhi/plant-load-boosting"
ROUNDS = 15


def copy_listings(home: Path, wanted: int) -> None:
    """Listings, their listed versions and prices, copied until there are `wanted` listings."""
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with engine.begin() as connection:
        ids = connection.execute(text("SELECT id FROM listing WHERE status = 'listed' ORDER BY name")).scalars().all()
        left = wanted - len(ids)
        for number in range(-(-left // len(ids))):
            part = ids[: left - number * len(ids)]
            _copy(
                connection,
                "listing",
                "id",
                part,
                number,
                {
                    "name": "name || :suffix",
                    # The demonstration's factory has a contract for every starter: here for those that are called.
                    "is_starter": f"CASE WHEN name = '{CALLED}' AND {number} < {ROUNDS} THEN 1 ELSE 0 END",
                },
            )
            linked = {"listing_id": "listing_id || :suffix"}
            _copy(connection, "model_version", "state = 'listed' AND listing_id", part, number, linked)
            _copy(connection, "price_version", "listing_id", part, number, linked)
    engine.dispose()


def _copy(
    connection: Connection, table: str, where: str, ids: Sequence[str], number: int, changes: dict[str, str]
) -> None:
    columns = [each["name"] for each in inspect(connection).get_columns(table)]
    changes = {"id": "id || :suffix"} | changes
    chosen = ", ".join(changes.get(each, each) for each in columns)
    copied = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table} WHERE {where} IN :ids"
    statement = text(copied).bindparams(bindparam("ids", expanding=True))
    connection.execute(statement, {"suffix": f"-{number:05d}", "ids": list(ids)})


def imports_s() -> float:
    """What importing the market takes on this machine, in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import marketplace.start, marketplace.cli"], check=True)
    return time.perf_counter() - began


def timed(call: Callable[[int], httpx.Response], times: int = ROUNDS) -> dict[str, float]:
    """Milliseconds: the first call, and the median and the worst of those after it."""
    took = []
    for number in range(times):
        began = time.perf_counter()
        answer = call(number)
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, answer.text[:500]
    return {"first_ms": round(took[0], 1), "median_ms": round(statistics.median(took[1:]), 1),
            "worst_ms": round(max(took[1:]), 1)}  # fmt: skip


def process_runs(market: LiveMarket) -> bool:
    return psutil.pid_exists(market.pid) and psutil.Process(market.pid).status() != psutil.STATUS_ZOMBIE


def _cpu_s(process: psutil.Process) -> float:
    """User and system time of the market's first process: it means something beside other work of the machine too."""
    times = process.cpu_times()
    return round(times.user + times.system, 2)


def measure(market: LiveMarket, listed: int) -> dict[str, Any]:
    began = time.perf_counter()
    market.spawn()
    while not market.is_ready():
        assert process_runs(market), market.log[-2000:]
        time.sleep(0.02)
    process = psutil.Process(market.pid)
    found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 2), "start_cpu_s": _cpu_s(process)}
    market.wait_ready()
    client = market.client("factory")
    client.get("/")
    found["first_page_s"] = round(time.perf_counter() - began, 2)
    found["first_page_cpu_s"] = _cpu_s(process)
    found["shelf"] = timed(lambda _: client.get("/"))
    found["shelf_cpu_ms"] = round((_cpu_s(process) - found["first_page_cpu_s"]) / ROUNDS * 1000, 1)
    total = client.get("/api/v1/models").json()["total"]
    assert total == listed, total
    found["search"] = timed(lambda _: client.get("/api/v1/models", params={"q": "轴承 故障"}))
    found["search_all"] = timed(lambda number: client.get("/api/v1/models", params={"page": number + 1}))
    found["search_tier"] = timed(
        lambda _: client.get("/api/v1/models", params={"q": "load", "task": "tabular-regression"})
    )
    found["index"] = timed(lambda _: client.post("/v2/repository/index"))
    found["model_page"] = timed(lambda _: client.get(f"/models/{CALLED}"))
    index = client.post("/v2/repository/index").json()
    copies = sorted(row["name"] for row in index if row["name"].startswith(CALLED.replace("/", "--") + "-"))
    assert len(copies) >= ROUNDS
    found["first_call"] = timed(lambda number: client.post(f"/v1/use/{copies[number]}", json=ROW))
    found["rss_mb"] = round(process.memory_info().rss / 1e6)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--listed", type=int, default=10_000)
    arguments.add_argument("--home", type=Path, default=None, help="a folder to keep, and to find the copies in again")
    given = arguments.parse_args()
    home = given.home or Path(tempfile.mkdtemp(prefix="algomart-listings-")) / "home"
    market = LiveMarket(home, ALGOMART_LOG_LEVEL="warning")
    if not (home / "market.db").exists():
        market.start()
        market.stop()
        copy_listings(home, given.listed)
    try:
        result = {"cores": len(os.sched_getaffinity(0)), "listed": given.listed, "imports_s": round(imports_s(), 2)}
        print(json.dumps(result | measure(market, given.listed), ensure_ascii=False, indent=1))
    finally:
        market.stop()


if __name__ == "__main__":
    main()
