"""From a call to a posted charge: `python -m tests.bench.bench_ledger [--calls N] [--stores …] [--nodes …]`.

Serving nodes, each a process with the shipped lease book and journal writer, draw on one voucher of one enterprise (the
worst case: every batch of every node meets on the same rows); the shipped ingest process charges what they write. Then
what metering costs a call, how soon usage is seen, and what is stranded when the voucher runs out.

PostgreSQL is one of its own, with fsync on. Exit 1 where a target of ../shared/design/vouchers.md is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import func, select

from marketplace.clock import now_ms
from marketplace.db import create_tables, open_database, reading
from marketplace.settings import Settings
from marketplace.usage.ingest import Ingest
from marketplace.usage.supervisor import IngestChild
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import NodeEpoch
from model_store.errors import PaymentRequired
from serving.metering import rate_usage
from tests.bench.ledger_node import BOUND, SERVED, LedgerNode, node_of
from tests.marketplace.town import PRINCIPAL, Town
from tests.postgres import postgres_server

POLL_S = 0.01
PATIENCE_S = 120.0
TARGETS = {"charged_per_s": 20_000, "metering_cpu_us": 8.0, "visible_p99_s": 2.0}


@contextlib.contextmanager
def market_on(store: str, face_fen: int = 400_000) -> Iterator[tuple[str, Path, Town]]:
    """(URL, home, town): an empty market with a voucher that pays a third of 0.37 fen a call, and a contract."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="algomart-ledger-")))
        url = f"sqlite:///{home / 'market.db'}"
        if store == "postgres":
            url = stack.enter_context(contextlib.contextmanager(postgres_server)(durable=True))
        engine = open_database(url)
        stack.callback(engine.dispose)
        create_tables(engine)
        town = Town(engine, home / "journal", now=now_ms())
        stack.callback(town.admission.close)
        town.voucher(face_fen)
        town.subscribe(3 * face_fen)
        yield url, home, town


# --- how many charged calls a second ----------------------------------------------------------------------------------


def through(store: str, nodes: int, calls: int, rate: int = 0) -> dict[str, Any]:
    """`calls` in all, by `nodes` processes at once, while the ingest process charges them: from the first call to the
    last posting. `rate`: calls a second in all (0: as fast as it goes); with it, how late each was seen."""
    with market_on(store) as (url, home, town):
        children = [_start_node(url, home, f"n{n}", calls // nodes, rate // nodes) for n in range(nodes)]
        ingest = IngestChild(Settings(home=home, database_url=url, demo=False))
        ingest.start()
        try:
            _wait_for(lambda: ingest.progress.caught_up_at_ms > 0, "ingest")
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            seen = _watch(town.engine, calls // nodes * nodes)
            told = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
        finally:
            ingest.stop()
            for child in children:
                child.kill()
        _check_charged(town, calls // nodes * nodes)
    wall = max(seen[f"n{n}"][-1][0] for n in range(nodes)) - min(each["began"] for each in told)
    writing = max(each["ended"] for each in told) - min(each["began"] for each in told)
    result = {
        "store": store, "nodes": nodes, "calls": calls // nodes * nodes, "charged_per_s": round(calls / wall),
        "written_per_s": round(calls / writing), "leases_asked": sum(each["leases_asked"] for each in told),
        "node_cpu_us": round(statistics.mean(each["cpu_us"] for each in told), 1),
    }  # fmt: skip
    return result | (_visible(told, seen) if rate else {})


def ingest_alone(store: str, nodes: int, calls: int) -> dict[str, Any]:
    """The same journals, all written before: one thread of ingest with a core to itself."""
    with market_on(store) as (url, home, town):
        folder = home / "journal"
        for n in range(nodes):
            with node_of(url, folder, f"n{n}") as node:
                asyncio.run(node.work(calls // nodes, 0))
        wall, cpu = time.perf_counter(), time.process_time()
        Ingest(town.engine, folder).flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        _check_charged(town, calls // nodes * nodes)
    made = calls // nodes * nodes
    return {"store": store, "nodes": nodes, "ingested_per_s": round(made / wall), "cpu_us": round(cpu / made * 1e6, 1)}


def _start_node(url: str, home: Path, name: str, calls: int, rate: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.ledger_node", url, str(home / "journal"), name, str(calls), str(rate)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise RuntimeError(f"node {name} did not start")
    return child


def _wait_for(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up within {PATIENCE_S} s")
        time.sleep(POLL_S)


def _watch(engine: Engine, wanted: int) -> dict[str, list[tuple[float, int]]]:
    """Node → [(instant, the last sequence number in the ledger by then)], until all are there."""
    seen: dict[str, list[tuple[float, int]]] = {}
    deadline = time.monotonic() + PATIENCE_S
    while sum(steps[-1][1] for steps in seen.values()) < wanted:
        with reading(engine) as session:
            rows = session.exec(select(NodeEpoch.node, NodeEpoch.last_seq)).all()
        at = time.monotonic()
        for node, last_seq in rows:
            steps = seen.setdefault(node, [(at, 0)])
            if last_seq > steps[-1][1]:
                steps.append((at, last_seq))
        if at > deadline:
            raise TimeoutError(f"not all charged after {PATIENCE_S} s: {seen}")
        time.sleep(POLL_S)
    return seen


def _visible(told: list[dict[str, Any]], seen: dict[str, list[tuple[float, int]]]) -> dict[str, float]:
    """Seconds from a record's writing until a reader of the database finds its batch."""
    late = []
    for number, each in enumerate(told):
        steps = iter(seen[f"n{number}"])
        at, last = next(steps)
        for seq, written in enumerate(each["written"], start=1):
            while last < seq:
                at, last = next(steps)
            late.append(at - written)
    late.sort()
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    return {"visible_p50_s": round(p50, 3), "visible_p99_s": round(p99, 3), "visible_max_s": round(late[-1], 3)}


def _check_charged(town: Town, calls: int) -> None:
    with reading(town.engine) as session:
        posted = session.exec(select(func.count()).select_from(Usage).where(Usage.status == "ok")).one()
    owed = town.balance("M.recv.ent[org_factory]")
    if posted != calls or owed != calls * 37 // 100:
        raise AssertionError(f"{posted} of {calls} posted, {owed} fen owed")
    town.check()


# --- what metering costs a call ---------------------------------------------------------------------------------------


def metering(calls: int = 50_000) -> dict[str, float]:
    """CPU µs a call of each part, on the calling thread, and of the journal's syncing thread; medians of 5 rounds."""
    with market_on("sqlite") as (url, home, _), node_of(url, home / "journal", "n1") as node:
        asyncio.run(node.work(100, 0))
        line = node.book.find(PRINCIPAL.organisation, SERVED.listing_id, "use")
        assert line is not None
        price = line.lease.prices[0]
        parts: dict[str, Callable[[], object]] = {
            "rate": lambda: rate_usage(BOUND, price),
            "lease_draw": lambda: _draw(node),
        }
        found = {name: _cpu_us(part, calls) for name, part in parts.items()}
        rounds = []
        for _ in range(5):
            whole, thread = time.process_time(), time.thread_time()
            asyncio.run(node.work(calls // 5, 0))
            thread = time.thread_time() - thread
            rounds.append((thread, time.process_time() - whole - thread))
        found["whole_call"] = statistics.median(each for each, _ in rounds) / (calls // 5) * 1e6
        found["syncing_thread"] = statistics.median(each for _, each in rounds) / (calls // 5) * 1e6
    return {f"{name}_us": round(us, 2) for name, us in found.items()}


def _draw(node: LedgerNode) -> None:
    reserved = node.book.reserve_now(PRINCIPAL, SERVED, BOUND, "use")
    assert reserved is not None
    reserved.keep(0)


def _cpu_us(part: Callable[[], object], calls: int) -> float:
    rounds = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(calls // 5):
            part()
        rounds.append((time.thread_time() - began) / (calls // 5) * 1e6)
    return statistics.median(rounds)


# --- what is stranded -------------------------------------------------------------------------------------------------


def stranded(nodes: int, face_fen: int = 2_000) -> dict[str, Any]:
    """A voucher's fen that nobody could draw once each of `nodes` was refused, and after they have ended."""
    with market_on("sqlite", face_fen) as (_, _, town):
        fleet = [town.node(f"n{n}") for n in range(nodes)]
        left = list(fleet)
        while left:
            for node in list(left):
                try:
                    node.call(count=40)
                except PaymentRequired:
                    left.remove(node)
        for node in fleet:
            node.flush()
        drawn = town.total("Q.used")
        for node in fleet:
            node.stop()
        settled = town.total("Q.lease")
        town.check()
    return {"nodes": nodes, "face_fen": face_fen, "stranded_fen": face_fen - drawn, "in_leases_after_end_fen": settled}


def judge(result: dict[str, Any]) -> list[str]:
    """The targets that were missed, in words."""
    missed = [
        f"{row['store']}, {row['nodes']} nodes: {row['charged_per_s']} charged calls/s"
        for row in result["through"] if row["charged_per_s"] < TARGETS["charged_per_s"]
    ]  # fmt: skip
    missed += [
        f"{row['store']}, {row['nodes']} nodes: usage visible after {row['visible_p99_s']} s at p99"
        for row in result["visible"] if row["visible_p99_s"] > TARGETS["visible_p99_s"]
    ]  # fmt: skip
    cost = result["metering"]["whole_call_us"]
    return missed + ([f"metering takes {cost} µs a call"] if cost > TARGETS["metering_cpu_us"] else [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_ledger", description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=120_000)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rate", type=int, default=2_000, help="calls a second for how soon usage shows")
    parser.add_argument("--seconds", type=int, default=8, help="of that")
    options = parser.parse_args(argv)
    pairs = [(store, nodes) for store in options.stores for nodes in options.nodes]
    result: dict[str, Any] = {"metering": metering()}
    result["through"] = [through(*pair, options.calls) for pair in pairs]
    result["ingest_alone"] = [ingest_alone(*pair, options.calls) for pair in pairs]
    result["visible"] = [through(*pair, options.rate * options.seconds, options.rate) for pair in pairs]
    result["stranded"] = [stranded(nodes) for nodes in (1, 4, 16)]
    result["missed"] = judge(result)
    json.dump(result, sys.stdout, indent=1)
    print()
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
