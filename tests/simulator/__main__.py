"""Run the simulator: `python -m tests.simulator --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.postgres import postgres_server
from tests.simulator.plants import PLANTS
from tests.simulator.real import run_real
from tests.simulator.world import World

WORLD_STEPS = 10_000  # a seed's history is cut into worlds of so many steps, each begun anew
PLANT_SEEDS = 200


def run_seed(seed: int, steps: int) -> tuple[int, str, dict[str, int]]:
    """A seed's worlds, one after another: (seed, what was violated or "", what happened)."""
    counts: Counter[str] = Counter()
    for number, start in enumerate(range(0, steps, WORLD_STEPS)):
        world = World(seed * 1_000_003 + number)
        try:
            world.run(min(WORLD_STEPS, steps - start))
        except Exception as error:  # whatever stops a world is a finding, and must name its seed
            return seed, f"world {number}, step {world.steps}: {type(error).__name__}: {error}", dict(counts)
        counts.update(world.told())
    return seed, "", dict(counts)


def run_real_seed(seed: int, steps: int, url: str) -> tuple[int, str, dict[str, int]]:
    """As `run_seed`, on a real store (`url` "": SQLite files)."""
    counts: Counter[str] = Counter()
    for number, start in enumerate(range(0, steps, WORLD_STEPS)):
        try:
            counts.update(run_real(seed * 1_000_003 + number, min(WORLD_STEPS, steps - start), url))
        except Exception as error:
            return seed, f"world {number}: {type(error).__name__}: {error}", dict(counts)
    return seed, "", dict(counts)


def find_plant(name: str, seeds: int = PLANT_SEEDS, steps: int = WORLD_STEPS) -> tuple[int, int, str] | None:
    """The first world that catches a planted bug: (its seed, the step, what it says); None where none does.

    An invariant catches it, or a shipped decision, which raises `ValueError` for what cannot be. A plant that ends in
    any other error is broken itself.
    """
    with PLANTS[name][1]():
        for seed in range(seeds):
            world = World(seed)
            try:
                world.run(steps)
            except (AssertionError, ValueError) as error:
                return seed, world.steps, f"{type(error).__name__}: {error}"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulator",
        description="A seeded market with crashing nodes, torn disks, a lossy network and wrong clocks, on the shipped "
        "decisions of leases, journals, ingest and claims. Exit 1 where an invariant does not hold, with its seed.",
        epilog="examples: --steps 1000000 --seeds 100 · --seed 7 --steps 20000 (that history again) · --plants "
        "(plant every known bug and say which seed catches it) · --plant no-fence",
    )
    parser.add_argument("--steps", type=int, default=100_000, help="actions a seed (default 100000)")
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    stores = ("memory", "sqlite", "postgres")
    parser.add_argument(
        "--store", choices=stores, default="memory", help="postgres: a throw-away server (default memory)"
    )
    parser.add_argument("--plant", choices=sorted(PLANTS), help="plant this bug; exit 1 where it is not caught")
    parser.add_argument("--plants", action="store_true", help="plant each in turn")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of words")
    options = parser.parse_args(argv)
    if options.plants or options.plant:
        return _plants([options.plant] if options.plant else sorted(PLANTS))
    return _simulate(options)


def _plants(names: list[str]) -> int:
    missed = 0
    for name in names:
        found = find_plant(name)
        missed += found is None
        told = "NOT CAUGHT" if found is None else f"seed {found[0]}, step {found[1]}: {found[2][:110]}"
        print(f"{name}: {PLANTS[name][0]}\n    {told}", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted bugs were caught")
    return 1 if missed else 0


def _simulate(options: argparse.Namespace) -> int:
    began, counts, violations = time.monotonic(), Counter[str](), []
    seeds = range(options.seed, options.seed + options.seeds)
    with contextlib.ExitStack() as stack:
        run: Callable[[int, int], tuple[int, str, dict[str, int]]] = run_seed
        jobs = options.jobs
        if options.store != "memory":
            server = contextlib.contextmanager(postgres_server) if options.store == "postgres" else None
            run = partial(run_real_seed, url=stack.enter_context(server()) if server else "")
            jobs = 1 if server else jobs  # one database for one history at a time
        pool = stack.enter_context(ProcessPoolExecutor(jobs))
        for seed, wrong, told in pool.map(run, seeds, [options.steps] * len(seeds)):
            counts.update(told)
            if wrong:
                violations.append({"seed": seed, "what": wrong})
            if not options.json:
                print(f"seed {seed}: {wrong or 'sound'}", flush=True)
    result = {
        "store": options.store, "seeds": options.seeds, "violations": violations,
        "seconds": round(time.monotonic() - began, 1), "steps": options.steps * options.seeds,
    } | dict(sorted(counts.items()))  # fmt: skip
    print(json.dumps(result) if options.json else f"{result}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
