"""Rebuild ten million records: `python -m tests.bench.bench_rebuild [--records 10000000] [--folder DIR]`.

A record is a ledger entry. A SQLite ledger is filled in bulk with charges as P5 has them, 92 days of them; then its
balances are rebuilt from the entries in a process of its own, its days closed and their roots computed again, with CPU
seconds and peak memory. A second ledger gets the same charges in a shuffled order: the rebuilt state must have the same
hash. Exit 1 where it has not, or where a rebuild does not find what is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from marketplace.clock import now_ms
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.integrity.days import check_days, close_days, list_days
from marketplace.ledger import accounts
from marketplace.ledger.accounts import has_floor, ledger_of
from marketplace.ledger.posting import Entry, Posting
from marketplace.ledger.postings import Terms, p1_tranche_approved, p4_leased, p5_used
from marketplace.ledger.rebuild import rebuild
from tests.bench.peak import peak_mib

DAYS, DAY_MS = 92, 86_400_000
PROGRAMME, TERMS = "prg", Terms(0, 600)
ENTRIES_OF_A_CHARGE = 6
CHUNK = 20_000
LEASED_FEN = 10**12  # in each enterprise's one lease: more than it ever uses
ENTRY = "INSERT INTO ledger_entry (transfer_id, line, account, amount_fen) VALUES (?, ?, ?, ?)"
TRANSFER = (
    "INSERT INTO ledger_transfer (id, kind, event_key, occurred_at_ms, posted_at_ms, memo) VALUES (?, ?, ?, ?, ?, '')"
)
ACCOUNT = "INSERT INTO ledger_account (code, ledger, floor_zero, balance_fen) VALUES (?, ?, ?, ?)"
SLOW_INDEX = ("ledger_entry_account", "CREATE INDEX ledger_entry_account ON ledger_entry (account)")


@cache
def entries_of(who: int, gross: int) -> tuple[Entry, ...]:
    """What a charge of `gross` fen of one enterprise moves, deducted at use: the city owes a part."""
    return p5_used(
        event="", enterprise=f"org_{who}", provider=f"org_vendor{who % 20}", gross_fen=gross, posted_gross_fen=0,
        terms=TERMS, occurred_at_ms=0, programme=PROGRAMME, reservation=f"rsv_{who}", mode="deduct",
        draws={f"lea_{who}": gross // 3},
    ).entries  # fmt: skip


def charge(number: int, enterprises: int, at_ms: int) -> Posting:
    """Charge `number`: always the same one, whenever it is made."""
    who = number % enterprises
    return Posting("P5", f"P5:rsv_{who}:{number}", entries_of(who, 100 + number * 7_919 % 97), at_ms)


def opening(enterprises: int, at_ms: int) -> Iterator[Posting]:
    """The pool, and each enterprise's lease out of it (what lies between the two is left out)."""
    yield p1_tranche_approved(PROGRAMME, "one", LEASED_FEN * enterprises, at_ms)
    for who in range(enterprises):
        moved = p4_leased(f"rsv_{who}", f"lea_{who}", LEASED_FEN, LEASED_FEN, at_ms)
        first, second = moved.entries
        taken = type(first)(accounts.unissued(PROGRAMME), first.amount_fen)
        yield Posting("P4", moved.event_key, (taken, second), at_ms)


def fill(path: Path, order: Iterable[int], enterprises: int, charges: int) -> int:
    """An empty market with all charges in that order; answers how many entries it has."""
    engine = open_database(f"sqlite:///{path}")
    create_tables(engine)
    start = now_ms() - (DAYS + 2) * DAY_MS
    balances: dict[str, int] = defaultdict(int)
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=OFF", "cache_size=-200000"):
        database.execute(f"PRAGMA {pragma}")
    database.execute(f"DROP INDEX {SLOW_INDEX[0]}")  # made again below: ten times as fast as keeping it up to date
    made = 0

    def write(postings: Iterable[tuple[int, Posting]]) -> None:
        nonlocal made
        transfers, entries = [], []
        for at_ms, posting in postings:
            made += 1
            transfers.append((made, posting.kind, posting.event_key, posting.occurred_at_ms, at_ms))
            for line, entry in enumerate(posting.entries, start=1):
                entries.append((made, line, entry.account, entry.amount_fen))
                balances[entry.account] += entry.amount_fen
        database.execute("BEGIN")
        database.executemany(TRANSFER, transfers)
        database.executemany(ENTRY, entries)
        database.execute("COMMIT")

    write((start, posting) for posting in opening(enterprises, start))
    chunk: list[tuple[int, Posting]] = []
    for at, number in enumerate(order):
        at_ms = start + at * (DAYS * DAY_MS) // charges
        chunk.append((at_ms, charge(number, enterprises, at_ms)))
        if len(chunk) == CHUNK:
            write(chunk)
            chunk = []
    write(chunk)
    rows = [(code, ledger_of(code), int(has_floor(code)), fen) for code, fen in sorted(balances.items())]
    database.executemany(ACCOUNT, rows)
    database.execute(SLOW_INDEX[1])
    (entries,) = database.execute("SELECT COUNT(*) FROM ledger_entry").fetchone()
    database.close()
    engine.dispose()
    return int(entries)


def rebuild_here(path: Path, with_days: bool) -> dict[str, Any]:
    """Balances and their hash from the entries; then every day closed, and every root computed again. With CPU seconds
    and this process's peak memory."""
    engine = open_database(f"sqlite:///{path}")
    began = time.process_time()
    with reading(engine) as session:
        found = rebuild(session)
    told = {
        "sound": found.sound, "entries": found.entries, "sha256": found.sha256,
        "balances_cpu_s": round(time.process_time() - began, 1), "balances_peak_rss_mib": peak_mib(),
    }  # fmt: skip
    if with_days:
        began = time.process_time()
        with transaction(engine) as session:
            close_days(session, now_ms())
        told["close_days_cpu_s"] = round(time.process_time() - began, 1)
        began = time.process_time()
        with reading(engine) as session:
            told["wrong_days"] = check_days(session)
            told["chain"] = list_days(session)[-1].chain
        told["check_days_cpu_s"] = round(time.process_time() - began, 1)
        told["peak_rss_mib"] = peak_mib()
    engine.dispose()
    return told


def bench_rebuild(folder: Path, records: int, enterprises: int, seed: int = 1) -> dict[str, Any]:
    """Both ledgers filled and rebuilt; the days of the first are closed too, and their roots computed again."""
    charges = max(1, records // ENTRIES_OF_A_CHARGE)
    shuffled = list(range(charges))
    random.Random(seed).shuffle(shuffled)
    result: dict[str, Any] = {"database": "SQLite, WAL", "charges": charges, "enterprises": enterprises}
    for name, order in (("in_order", range(charges)), ("shuffled", shuffled)):
        path = folder / f"{name}.db"
        began = time.process_time()
        entries = fill(path, order, enterprises, charges)
        filled = {"entries": entries, "fill_cpu_s": round(time.process_time() - began, 1), "bytes": path.stat().st_size}
        result[name] = filled | {"rebuilt": _in_a_process(path, name == "in_order")}
        for left in folder.glob(f"{name}.db*"):
            left.unlink()
    result["faults"] = _faults(result)
    return result


def _in_a_process(path: Path, with_days: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.bench_rebuild", "--rebuild", str(path)]
    command += ["--with-days"] if with_days else []
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(told))


def _faults(result: dict[str, Any]) -> list[str]:
    faults = []
    for name in ("in_order", "shuffled"):
        rebuilt = result[name]["rebuilt"]
        if not rebuilt["sound"] or rebuilt.get("wrong_days"):
            faults.append(f"{name} is not sound: {rebuilt}")
        if rebuilt["entries"] != result[name]["entries"]:
            faults.append(f"{name}: not every entry was rebuilt from")
    if result["in_order"]["rebuilt"]["sha256"] != result["shuffled"]["rebuilt"]["sha256"]:
        faults.append("the rebuilt states differ")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_rebuild", description="A ledger, rebuilt")
    parser.add_argument("--records", type=int, default=10_000_000, help="ledger entries")
    parser.add_argument("--enterprises", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="where the ledgers lie meanwhile: 1.5 GB for ten million")
    parser.add_argument("--rebuild", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--with-days", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rebuild:
        print(json.dumps(rebuild_here(options.rebuild, options.with_days)))
        return 0
    with tempfile.TemporaryDirectory(prefix="algomart-rebuild-", dir=options.folder) as folder:
        result = bench_rebuild(Path(folder), options.records, options.enterprises)
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
