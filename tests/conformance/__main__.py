"""`make conformance`: publish the backend cases to a market, call each over HTTP, and print which pass.

    python -m tests.conformance [--cases N --seed S] [--url URL --key KEY] [--json FILE]

Without `--url` a fresh market is started in a temporary folder and stopped afterwards. Ends with 1 where fewer than 630
of the 630 cases (or the same share of a sample) pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from tests.conformance.cases import NEEDED, Case, load_cases
from tests.conformance.runner import Result, run_case

PARALLEL = 2
ALL_CASES = 630


def main() -> int:
    arguments = _arguments()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, contextlib.ExitStack() as stack:
        cases = load_cases(Path(folder) / "cases", arguments.cases, arguments.seed)
        url, key = stack.enter_context(_market(arguments.url, arguments.key, Path(folder)))
        start = time.perf_counter()
        results = run_cases(url, key, cases, console)
        seconds = time.perf_counter() - start
    if arguments.json:
        rows = [{"case": r.case.name, "outcome": r.outcome, "ways": r.ways, "why": r.why} for r in results]
        Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return _print(console, results, seconds)


def run_cases(url: str, key: str, cases: list[Case], console: Console) -> list[Result]:
    """Every case, two at a time, each thread with a connection of its own that it keeps."""
    local = threading.local()

    def client() -> httpx.Client:
        if not hasattr(local, "client"):
            headers = {"Authorization": f"Bearer {key}"}
            local.client = httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False)
        made: httpx.Client = local.client
        return made

    organisation = client().get("/api/v1/me").raise_for_status().json()["organisation"]
    vendor = organisation["slug"]
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(PARALLEL) as pool:
        task = progress.add_task("publish, call, compare", total=len(cases))

        def run(case: Case) -> Result:
            result = run_case(client(), vendor, case)
            progress.advance(task)
            return result

        return list(pool.map(run, cases))


@contextlib.contextmanager
def _market(url: str | None, key: str | None, folder: Path) -> Iterator[tuple[str, str]]:
    """The address and key given, or those of a market started here."""
    if url:
        if not key:
            sys.exit("--url needs --key")
        yield url, key
        return
    from tests.live import LiveMarket

    market = LiveMarket(folder / "home")
    market.start()
    try:
        yield market.url, market.keys["vendor"]
    finally:
        market.stop()


def _print(console: Console, results: list[Result], seconds: float) -> int:
    counts = Counter(result.outcome for result in results)
    wrong = [result for result in results if result.outcome != "passed"]
    if wrong:
        table = Table("case", "outcome", "why")
        for result in wrong:
            table.add_row(result.case.name, result.outcome, result.why)
        console.print(table)
    calls = Counter(way for result in results for way in result.ways)
    console.print(
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['refused']} refused of {len(results)} cases"
        f" in {seconds:.0f} s; {calls['json']} called with JSON, {calls['binary']} with binary tensors"
    )
    needed = math.ceil(len(results) * NEEDED / ALL_CASES)
    return 0 if counts["passed"] >= needed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="ONNX backend cases over HTTP")
    parser.add_argument("--cases", type=int, help="a seeded sample of so many cases (all by default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a running market (one is started by default)")
    parser.add_argument("--key", help="a key of a vendor there, with the scopes publish and use")
    parser.add_argument("--json", help="also write every case's outcome to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
