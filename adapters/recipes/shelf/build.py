"""`python -m adapters.recipes.shelf.build [--data DIR] [--only NAME …] --out DIR`: the starter shelf, from the data.

Trains every entrant anew, writes for each `<vendor>--<slug>.zip` and `<vendor>--<slug>.report.json` (inspection, so
that a first start need not inspect again), and `starter.yaml` (vendors, prices, sizes). Seeded, one thread: the same
data and packages give the same bundles on the same processor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from adapters.recipes.shelf.family import Entrant, Family

# One module each; a module may hold several families.
FAMILIES = (
    "ai4i.FAMILY", "steel.FAMILY", "turbofan.FAMILY", "bearing.FAMILY", "hydraulic.FAMILY", "power.FAMILY",
    "concrete.FAMILY", "orders.FAMILY", "board_models.DEFECTS", "board_models.BASE", "board_models.ODD",
)  # fmt: skip
MICRO_PER_FEN = 1_000_000
BUDGET_BYTES = 8 * 1024**2  # of all zips together: they are in the repository
VENDORS = {
    "dongzhi": ("东智工业算法(演示)", "Dongzhi Industrial Algorithms (demonstration)"),
    "lingnan": ("岭南智造(演示)", "Lingnan Smart Making (demonstration)"),
    "pearl": ("珠江智能(演示)", "Pearl River Intelligence (demonstration)"),
}
DEFAULT_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
HEAD = """\
# The starter shelf: demonstration models on public data that may train what ships. Written by
# `python -m adapters.recipes.shelf.build` (algomart catalogue rebuild); edit the families there, not this file.
# Vendors are demonstrations, so nothing here counts in 3 / 15 / 200. Prices are demonstration values in fen per unit;
# `filed` carry the demonstration filing (not a filing number). Budget of all zips together: 8 MiB (`budget_bytes`).
"""


def families() -> list[Family]:
    """Every family of the shelf, in order."""
    found = []
    for place in FAMILIES:
        module, _, name = place.partition(".")
        found.append(getattr(import_module(f"adapters.recipes.shelf.{module}"), name))
    return found


def entrants(only: Sequence[str] = ()) -> Iterator[tuple[Family, Entrant]]:
    """Every entrant with its family; `only` names entrants (`vendor/slug` or slug) or families."""
    for family in families():
        for entrant in family.entrants:
            if not only or {entrant.name, entrant.slug, family.slug} & set(only):
                yield family, entrant


def build(data: Path, out: Path, only: Sequence[str] = ()) -> int:
    """Train, seal, inspect and write; prints a line for each model. Returns how many did not pass inspection."""
    from adapters.recipes.shelf import assemble

    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    slug, parts = "", None
    print(f"{'model':<36} {'metric':<12} {'value':>8} {'95% interval':>19} {'rows':>6} {'zip kB':>7} {'s':>6}  report")
    with tempfile.TemporaryDirectory(prefix="algomart-shelf-") as work:
        for family, entrant in entrants(only):
            start = time.perf_counter()
            if parts is None or slug != family.slug:
                slug, parts = family.slug, family.load(data)
            made = assemble.make(family, entrant, parts, Path(work), out)
            failed += not made.report.passed
            print(line_of(entrant, made, time.perf_counter() - start), flush=True)
            for finding in made.report.findings:
                if finding.severity in ("error", "warning"):
                    print(f"    {finding.severity}: {finding.code} {finding.en} ({finding.where})", flush=True)
    total = write_index(out)
    print(f"total {total / 1024:.0f} kB of {BUDGET_BYTES / 1024:.0f} kB")
    return failed + (total > BUDGET_BYTES)


def line_of(entrant: Entrant, made: Any, seconds: float) -> str:
    """One line of the table."""
    main, kilobytes = made.main, made.zip_path.stat().st_size / 1024
    figures = f"{'–':<12} {'':>8} {'':>19} {'':>6}"
    if main is not None:
        interval = f"{main.low:.4g} – {main.high:.4g}" if main.low is not None else "–"
        figures = f"{main.name:<12} {main.value:>8.4g} {interval:>19} {main.rows:>6}"
    verdict = "passed" if made.report.passed else "FAILED"
    return f"{entrant.name:<36} {figures} {kilobytes:>7.0f} {seconds:>6.1f}  {verdict}"


def write_index(out: Path) -> int:
    """Write `starter.yaml` (as marketplace.starter reads it) for the zips that are there; returns their total bytes."""
    there = [
        (family, entrant) for family, entrant in entrants() if (out / f"{entrant.vendor}--{entrant.slug}.zip").is_file()
    ]
    sizes = {entrant.name: (out / f"{entrant.vendor}--{entrant.slug}.zip").stat().st_size for _, entrant in there}
    vendors = {slug: {"name_zh": zh, "name_en": en} for slug, (zh, en) in VENDORS.items()}
    content = {
        "budget_bytes": BUDGET_BYTES,
        "total_bytes": sum(sizes.values()),
        "vendors": vendors,
        "prices": {entrant.name: price_of(entrant) for _, entrant in there},
        "filed": [entrant.name for _, entrant in there if entrant.demo_filing],
        "models": {
            entrant.name: {"family": family.slug, "zip_bytes": sizes[entrant.name]} for family, entrant in there
        },
    }
    text = HEAD + yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=120)
    (out / "starter.yaml").write_text(text, encoding="utf-8")
    return sum(sizes.values())


def price_of(entrant: Entrant) -> dict[str, str]:
    """A price in fen, as exact decimal text."""
    price = entrant.price
    return {
        "unit": price.unit,
        "fen_per_unit": str(Decimal(price.micro_per_unit) / MICRO_PER_FEN),
        "derivative_fen_per_unit": str(Decimal(price.derivative_micro_per_unit) / MICRO_PER_FEN),
    }


def digest_in(zip_path: Path) -> str:
    """The digest of the bundle inside: SHA-256 of its manifest.json."""
    import hashlib

    with zipfile.ZipFile(zip_path) as archive:
        return hashlib.sha256(archive.read("manifest.json")).hexdigest()


def check_reports(out: Path) -> list[str]:
    """Names of zips whose report is missing, is about another digest, or did not pass."""
    wrong = []
    for zip_path in sorted(out.glob("*.zip")):
        path = out / f"{zip_path.name.removesuffix('.zip')}.report.json"
        said = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if said.get("digest") != digest_in(zip_path) or not said.get("passed"):
            wrong.append(zip_path.name)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adapters.recipes.shelf.build", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the public data sets")
    parser.add_argument("--out", type=Path, required=True, help="where zips, reports and starter.yaml go")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a model or a family; repeatable")
    chosen = parser.parse_args(arguments)
    if not chosen.data.is_dir():
        print(f"no data at {chosen.data}; name the folder with --data", file=sys.stderr)
        return 2
    if chosen.only and not list(entrants(chosen.only)):
        print(f"nothing is called {', '.join(chosen.only)}", file=sys.stderr)
        return 2
    return 1 if build(chosen.data, chosen.out, chosen.only) else 0


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # before numpy and torch are imported
    sys.exit(main())
