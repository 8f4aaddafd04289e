"""The tour's receipt, done again from what anybody can download: exported usage, published prices and programmes.

Nothing of the ledger or the vouchers is imported here. The floor rules are those of ../shared/design/vouchers.md,
"Rounding": gross is ⌊Σ micro / 10⁶⌋ and the voucher's share ⌊Σ micro · num / (den · 10⁶)⌋, per reservation.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CALLS = 1000
MODES = {"reimburse": "demo-reimburse", "deduct": "demo-deduct"}
KEYS = (
    "calls", "gross_fen", "voucher_fen", "self_paid_fen", "voucher_issued_fen", "voucher_remaining_fen",
    "ledger_balanced", "usage_ids",
)  # fmt: skip
SUMMED = KEYS[:6]
MICRO_PER_FEN = 1_000_000


@dataclass(frozen=True)
class Toured:
    receipt: dict[str, Any]
    folder: Path

    def usage(self, mode: str) -> list[dict[str, str]]:
        with (self.folder / f"usage-{mode}.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def published(self, what: str) -> list[dict[str, Any]]:
        return json.loads((self.folder / f"{what}.json").read_text(encoding="utf-8"))["items"]


@pytest.fixture(scope="session")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Toured:
    """`algomart tour --json` once, as a user runs it."""
    folder = tmp_path_factory.mktemp("tour")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
    command = [sys.executable, "-m", "marketplace.cli", "tour", "--json", "--calls", str(CALLS), "--export", folder]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return Toured(json.loads(done.stdout), folder)


def amount_micro(row: dict[str, str], prices: dict[str, dict[str, Any]]) -> int:
    """Units at the published price, as the row says which one."""
    price = prices[row["price_version"]]
    units = dict(part.split("=") for part in row["units"].split())
    return int(units[price["unit"]]) * price["micro_per_unit"]


def recomputed(rows: list[dict[str, str]], prices: dict[str, dict[str, Any]], num: int, den: int) -> dict[str, int]:
    """Gross, voucher and own cost in fen: floors of the sums, reservation by reservation."""
    gross, eligible = defaultdict(int), defaultdict(int)
    for row in rows:
        amount = amount_micro(row, prices)
        gross[row["reservation_id"]] += amount
        eligible[row["reservation_id"]] += amount if row["lease_kind"] == "subsidised" else 0
    gross_fen = sum(micro // MICRO_PER_FEN for micro in gross.values())
    voucher_fen = sum(micro * num // (den * MICRO_PER_FEN) for micro in eligible.values())
    return {"gross_fen": gross_fen, "voucher_fen": voucher_fen, "self_paid_fen": gross_fen - voucher_fen}


@pytest.mark.parametrize("mode", MODES)
def test_the_receipt_follows_from_exported_usage_and_published_prices(toured: Toured, mode: str) -> None:
    receipt, rows = toured.receipt["modes"][mode], toured.usage(mode)
    prices = {price["price_version"]: price for price in toured.published("prices")}
    programme = next(each for each in toured.published("programmes") if each["code"] == MODES[mode])
    num, den = programme["ratio"]["num"], programme["ratio"]["den"]
    assert (num, den) == (1, 3)
    assert {(row["ratio_num"], row["ratio_den"]) for row in rows} == {("1", "3")}
    assert {price["micro_per_unit"] for price in prices.values()} == {370_000}
    assert {row["lease_kind"] for row in rows} == {"subsidised"}
    again = recomputed(rows, prices, num, den)
    assert {key: receipt[key] for key in again} == again
    assert again["gross_fen"] == CALLS * 370_000 // MICRO_PER_FEN == 370
    assert again["voucher_fen"] == CALLS * 370_000 // (3 * MICRO_PER_FEN) == 123
    assert receipt["voucher_remaining_fen"] == receipt["voucher_issued_fen"] - again["voucher_fen"]


@pytest.mark.parametrize("mode", MODES)
def test_every_acknowledged_call_is_in_the_export_once_and_nothing_else(toured: Toured, mode: str) -> None:
    acknowledged = toured.receipt["modes"][mode]["usage_ids"]
    exported = [row["usage_id"] for row in toured.usage(mode)]
    assert len(acknowledged) == len(set(acknowledged)) == CALLS
    assert sorted(exported) == sorted(acknowledged)


@pytest.mark.parametrize("mode", MODES)
def test_the_market_wrote_down_for_each_call_what_its_price_says(toured: Toured, mode: str) -> None:
    prices = {price["price_version"]: price for price in toured.published("prices")}
    for row in toured.usage(mode):
        assert int(row["amount_micro"]) == amount_micro(row, prices)


def test_a_private_derivative_is_sold_at_its_parent_s_derivative_price(toured: Toured) -> None:
    kinds = {price["price_version"]: price["kind"] for price in toured.published("prices")}
    for mode in MODES:
        sold = {(row["model"].partition("@")[0], kinds[row["price_version"]]) for row in toured.usage(mode)}
        assert sold == {("dongzhi/cutting-power", "use"), (f"demo-factory/cutting-power-{mode}", "derivative")}


def test_the_files_that_a_programme_must_have_were_handed_in(toured: Toured) -> None:
    for mode, code in MODES.items():
        programme = next(each for each in toured.published("programmes") if each["code"] == code)
        wanted = [piece["code"] for piece in programme["evidence_schema"] if piece["kind"] == "file"]
        handed_in = toured.receipt["modes"][mode]["evidence"]
        assert [(each["code"], each["kind"]) for each in handed_in] == [(piece, "pdf") for piece in wanted]
        assert all(len(each["sha256"]) == 64 for each in handed_in)
    assert toured.receipt["modes"]["reimburse"]["evidence"]  # one of the two shows what an upload is


def test_the_receipt_has_the_published_keys_per_mode_and_in_sum(toured: Toured) -> None:
    total, modes = toured.receipt, toured.receipt["modes"]
    assert set(modes) == set(MODES)
    for receipt in (total, *modes.values()):
        assert set(KEYS) <= set(receipt)
        assert receipt["gross_fen"] == receipt["voucher_fen"] + receipt["self_paid_fen"]
        assert receipt["ledger_balanced"] is True
    for key in SUMMED:
        assert total[key] == sum(receipt[key] for receipt in modes.values())
    assert total["usage_ids"] == [usage for receipt in modes.values() for usage in receipt["usage_ids"]]


def test_a_tour_without_the_workshop_says_so_and_what_to_do(tmp_path: Path) -> None:
    """As in the minutes after `make up`, when the training packages are still on their way."""
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["torch"] = None\n', encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "marketplace.cli", "tour", "--calls", "2"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("WORKSHOP_NOT_READY")
    assert "make up installs it in the background" in " ".join(done.stderr.split())
    assert "训练组件尚未安装完成" in done.stderr
