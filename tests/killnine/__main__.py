"""`python -m tests.killnine`: kill -9 under load, and the books held against what was acknowledged.

    python -m tests.killnine [--kills 20] [--clients 8] [--seed N] [--outside-registry] [--folder DIR] [--json]

Ends with 1 where anything was lost, doubled or out of balance.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import tempfile
from pathlib import Path

from tests.killnine.run import Verdict, kill_nine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.killnine", description="kill -9 of a market under load")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=None, help="of the instants and the calls; random by default")
    parser.add_argument(
        "--outside-registry", action="store_true", help="MLflow beside the market, never killed: starts are quicker"
    )
    parser.add_argument("--folder", type=Path, help="keep the market, its log and the acknowledgements here")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if arguments.json else print
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="killnine-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        verdict = kill_nine(
            folder, kills=arguments.kills, clients=arguments.clients, seed=seed,
            outside_registry=arguments.outside_registry, say=say,
        )  # fmt: skip
    print(json.dumps(verdict.as_dict(), indent=1) if arguments.json else in_words(verdict))
    return 1 if verdict.faults else 0


def in_words(verdict: Verdict) -> str:
    """The verdict for a terminal."""
    lines = [
        f"{verdict.kills} + {verdict.kills_while_starting} kills (the latter while it started again) under"
        f" {verdict.clients} clients, seed {verdict.seed}",
        f"acknowledged {verdict.acknowledged}, posted {verdict.posted},"
        f" acknowledged but not posted {verdict.acknowledged_not_posted}",
        f"posted but not acknowledged {verdict.posted_not_acknowledged},"
        f" in flight at the kills {verdict.in_flight_at_kills}",
        f"models published meanwhile: {verdict.models_published}; refusals: {verdict.refused or 'none'}",
        f"restart: median {statistics.median(verdict.restart_s):.1f} s, longest {max(verdict.restart_s):.1f} s",
        *(f"FAULT {fault}" for fault in verdict.faults),
        "FAILED" if verdict.faults else "passed: nothing lost, nothing twice, the pool is conserved",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
