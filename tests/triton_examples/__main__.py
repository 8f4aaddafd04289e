"""`make triton-examples EXAMPLES=DIR`: Triton's public client examples, unmodified, against `algomart serve`.

    python -m tests.triton_examples --examples DIR [--markdown]

DIR holds them as they lie in triton-inference-server/client, `src/python/examples/*.py`; they are not part of this
repository. Ends with 1 where one fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.triton_examples.runner import Result, run_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.triton_examples")
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    if not list(arguments.examples.glob("*.py")):
        print(f"no scripts in {arguments.examples}", file=sys.stderr)
        return 2
    results = []
    with tempfile.TemporaryDirectory(prefix="triton-examples-") as scratch:
        for result in run_all(arguments.examples, Path(scratch)):
            print(f"{result.outcome:15} {result.name} {result.why}", flush=True)
            results.append(result)
    if arguments.markdown:
        print(as_markdown(results))
    else:
        Console().print(as_table(results))
    counted = Counter(result.outcome for result in results)
    print(", ".join(f"{count} {outcome}" for outcome, count in counted.items()))
    return 1 if counted["failed"] else 0


def as_table(results: list[Result]) -> Table:
    table = Table("script", "outcome", "ways", "why")
    for result in results:
        table.add_row(result.name, result.outcome, str(result.ways), result.why)
    return table


def as_markdown(results: list[Result]) -> str:
    rows = [f"| `{each.name}` | {each.outcome} | {each.ways} | {each.why} |" for each in results]
    return "\n".join(["| script | outcome | ways | why |", "| --- | --- | ---: | --- |", *rows])


if __name__ == "__main__":
    sys.exit(main())
