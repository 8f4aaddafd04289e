"""`algomart tour`: the whole main job on a fresh market, over HTTP with the users' own keys, ending in a receipt.

Publish → inspect → review → price → filing → apply → issue (two persons) → subscribe → choose → adapt → call, in both
settlement modes at 0.37 fen a call with the city paying a third. Every number of the receipt is read back from the
market; none is computed by the ledger's code here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from marketplace.client import Market, MarketError
from marketplace.tour_contract import contract_pdf
from marketplace.tour_model import RANGES, build_tour_bundle

MICRO_PER_CALL = 370_000  # 0.37 fen
DEFAULT_CALLS = 1000
CONTRACT_FEN, FACE_FEN = 30_000, 10_000
PROGRAMMES = {"reimburse": "demo-reimburse", "deduct": "demo-deduct"}
WAIT_S = 60.0
Say = Callable[[str], None]
SUMMED = ("calls", "gross_fen", "voucher_fen", "self_paid_fen", "voucher_issued_fen", "voucher_remaining_fen")


@dataclass
class Tour:
    """The users at one market. `say` tells the story as it goes."""

    url: str
    keys: dict[str, str]
    say: Say = print
    clients: dict[str, Market] = field(default_factory=dict)

    def __getitem__(self, user: str) -> Market:
        if user not in self.clients:
            self.clients[user] = Market(self.url, self.keys[user])
        return self.clients[user]


def run_tour(
    *, calls: int = DEFAULT_CALLS, say: Say = print, home: Path | None = None, export: Path | None = None
) -> dict[str, Any]:
    """The receipt: per mode and, at top level, in sum; `ledger_balanced` only where the market's own audit says so.

    `export`: a folder for what the market publishes and hands out, so that anybody can do the sums again.
    """
    with fresh_market(home) as (url, keys):
        tour = Tour(url, keys, say)
        suspend_seeded_vouchers(tour)
        name = publish_model(tour)
        modes = {mode: run_mode(tour, mode, name, calls) for mode in PROGRAMMES}
        if export is not None:
            write_export(tour, export, name, modes)
        balanced = all(receipt["ledger_balanced"] for receipt in modes.values())
        total: dict[str, Any] = {key: sum(receipt[key] for receipt in modes.values()) for key in SUMMED}
        usage_ids = [usage for receipt in modes.values() for usage in receipt["usage_ids"]]
        return {**total, "ledger_balanced": balanced, "usage_ids": usage_ids, "modes": modes, "model": name}


@contextmanager
def fresh_market(home: Path | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """A demonstration market of its own, in a process of its own; its address and keys."""
    with tempfile.TemporaryDirectory(prefix="algomart-tour-") as temporary:
        folder = home or Path(temporary) / "home"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {"HOME": str(folder), "PORT": str(port), "DEMO": "true", "BUILD_MINILM": "false"}
        environment = os.environ | {f"ALGOMART_{name}": value for name, value in own.items()}
        log_path = Path(temporary) / "market.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "marketplace.cli", "up"], env=environment, stdout=log, stderr=log
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, log_path)
            yield url, json.loads((folder / "demo-keys.json").read_text(encoding="utf-8"))
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/v2/health/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the market did not open:\n{log_path.read_text(errors='replace')[-3000:]}")


def suspend_seeded_vouchers(tour: Tour) -> None:
    """The demonstration market begins with a voucher; the tour issues its own and leaves that one out of the way."""
    for voucher in tour["factory"].vouchers():
        if voucher["state"] == "active":
            tour["operator"].post(f"/api/v1/vouchers/{voucher['id']}/suspend", {"note": "tour"})


def publish_model(tour: Tour) -> str:
    """The vendor publishes and prices; the operator reviews, files and lists."""
    vendor, operator = tour["vendor"], tour["operator"]
    slug = vendor.me()["organisation"]["slug"]
    name = f"{slug}/cutting-power"
    with tempfile.TemporaryDirectory() as folder:
        build_tour_bundle(Path(folder) / "bundle", name)
        published = vendor.publish(Path(folder) / "bundle", name)
    report = published["report"]
    tour.say(f"① 供应商发布 {name}@{published['version']}: 检测通过, {report['duration_ms']} ms")
    for kind in ("use", "derivative"):
        vendor.set_price(name, unit="calls", micro_per_unit=MICRO_PER_CALL, kind=kind)
    review = vendor.submit(name, published["version"])
    operator.post(f"/api/v1/reviews/{review['review_id']}/approve", {"note": "tour"})
    filing = next(item for item in operator.get("/api/v1/filings")["items"] if item["is_demo"])
    operator.request("PUT", f"/api/v1/models/{name}/filing", json={"filing": filing["number"]})
    tour.say(f"② 运营方审核上架, 备案号 {filing['number']}; 单价 0.37 分/次")
    return name


def run_mode(tour: Tour, mode: str, name: str, calls: int) -> dict[str, Any]:
    """Issue a voucher in this mode, subscribe, choose, adapt, call, and read the receipt back."""
    factory = tour["factory"]
    voucher = issue_voucher(tour, PROGRAMMES[mode])
    files = factory.get(f"/api/v1/applications/{voucher['application_id']}")["files"]
    for file in files:
        tour.say(f"③ [{mode}] 申报材料 {file['name']}, SHA-256 {file['sha256'][:16]}…")
    contract = factory.subscribe(name, contract_fen=CONTRACT_FEN, on_voucher_end="refuse")
    tour.say(f"③ [{mode}] 发券 {FACE_FEN / 100:.2f} 元 (两人复核), 订阅 {name}")
    derivative = choose_and_adapt(tour, name, mode)
    usage_ids = call_many(factory, name, calls - 1)
    usage_ids.append(factory.use(derivative, example_row(0))["usage_id"])
    tour.say(f"⑤ [{mode}] 调用 {len(usage_ids)} 次, 其中 1 次为私有派生模型 {derivative}")
    receipt = settle(tour, mode, voucher["id"], contract["id"], usage_ids)
    receipt["evidence"] = [{name: file[name] for name in ("code", "kind", "sha256")} for file in files]
    factory.post(f"/api/v1/subscriptions/{contract['id']}/end")
    tour["operator"].post(f"/api/v1/vouchers/{voucher['id']}/suspend", {"note": "tour"})
    return receipt


def issue_voucher(tour: Tour, programme: str) -> dict[str, Any]:
    """Application, with the files that it asks for → checks → approval → public notice → proposal by one operator,
    approval by another."""
    factory, operator = tour["factory"], tour["operator"]
    application = factory.post(
        "/api/v1/applications", {"programme": programme, "requested_fen": FACE_FEN, "purpose": "演示"}
    )
    attach_files(tour, application["id"], programme)
    factory.post(f"/api/v1/applications/{application['id']}/submit")
    for step in ("check", "approve", "publish", "confirm"):
        operator.post(f"/api/v1/applications/{application['id']}/{step}", {"note": "tour"})
    proposed = operator.post("/api/v1/vouchers", {"application_id": application["id"], "face_fen": FACE_FEN})
    return dict(tour["operator2"].post(f"/api/v1/vouchers/{proposed['id']}/approve", {"note": "tour"}))


def attach_files(tour: Tour, application_id: str, programme: str) -> None:
    """A contract for each file that the programme must have."""
    factory = tour["factory"]
    schema = factory.get(f"/api/v1/programmes/{programme}")["evidence_schema"]
    lines = ["DEMONSTRATION - not a contract of anybody's", "", f"Application {application_id}",
             f"Use of a cutting power model, {CONTRACT_FEN / 100:.2f} yuan foreseen"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demonstration-contract.pdf"
        path.write_bytes(contract_pdf(lines))
        for piece in schema:
            if piece["kind"] == "file" and piece["required"]:
                factory.attach_evidence(application_id, piece["code"], path)


def choose_and_adapt(tour: Tour, name: str, mode: str) -> str:
    """The engineer ranks the shelf on 60 rows of the factory's own machine and calibrates the winner to it."""
    engineer = tour["engineer"]
    samples = engineer.upload_samples(_samples(Path(tempfile.mkdtemp())), label_column="实测功率(kW)")
    choice = engineer.choose(samples["id"], models=[name])
    best = choice["result"]["candidates"][0]
    tour.say(f"④ [{mode}] 选型: {best['model']}, RMSE {best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}] kW")
    slug = engineer.me()["organisation"]["slug"]
    job = engineer.adapt(
        "tabular_calibrate", model=name, sample_set_id=samples["id"], name=f"{slug}/cutting-power-{mode}"
    )
    engineer.delete_samples(samples["id"])
    derivative = str(job["result"]["name"])
    tour.say(f"④ [{mode}] 适配: {derivative}, 关系 calibrated, 样本已删除")
    return derivative


def _samples(folder: Path) -> Path:
    """60 rows of a worn lathe that draws 15% more power than the formula says."""
    random = np.random.default_rng(7)
    rows = np.column_stack([random.uniform(*bounds, 60) for bounds in RANGES.values()])
    power = 1.15 * rows[:, 0] * rows[:, 2] * 2220 * rows[:, 1] ** 0.86 / 60_000
    lines = ["切削速度(m/min),每转进给量(mm/r),切削深度(mm),实测功率(kW)"]
    lines += [",".join(f"{cell:.5f}" for cell in (*row, value)) for row, value in zip(rows, power, strict=True)]
    path = folder / "samples.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def example_row(place: int) -> dict[str, float]:
    return {"speed": 100.0 + place % 100, "feed": 0.2, "depth": 1.0 + place % 3}


def call_many(factory: Market, name: str, calls: int) -> list[str]:
    """`calls` single-row calls on four connections; the usage ids as they were answered."""

    def call(place: int) -> str:
        return str(factory.use(name, example_row(place))["usage_id"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, range(calls)))


def settle(tour: Tour, mode: str, voucher_id: str, contract_id: str, usage_ids: list[str]) -> dict[str, Any]:
    """Wait until every acknowledged call is in the ledger, then read what it came to."""
    factory, operator = tour["factory"], tour["operator"]
    wanted = set(usage_ids)
    deadline = time.monotonic() + WAIT_S
    while True:
        posted = {row["usage_id"] for row in factory.all_usage(subscription_id=contract_id)}
        if wanted <= posted or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    if not wanted <= posted:
        raise MarketError(500, {"code": "TOUR_USAGE_LOST", "message": f"{len(wanted - posted)} calls are not posted"})
    trace = factory.trace(usage_ids[-1])
    voucher = factory.get(f"/api/v1/vouchers/{voucher_id}")
    balance = operator.get("/api/v1/ledger/trial-balance")
    audit = operator.get("/api/v1/ledger/rebuild")
    line = money_of(factory, contract_id)
    return {
        "calls": len(usage_ids),
        **line,
        "voucher_issued_fen": voucher["face_fen"],
        "voucher_remaining_fen": voucher["remaining_fen"],
        "ledger_balanced": bool(balance["balanced"] and audit["sound"]),
        "usage_ids": usage_ids,
        "voucher_id": voucher_id,
        "subscription_id": contract_id,
        "trace": trace,
        "settlement_mode": mode,
    }


def money_of(factory: Market, contract_id: str) -> dict[str, int]:
    """Gross, voucher's share and own cost of one contract, as its reservations say."""
    row = next(item for item in factory.get("/api/v1/subscriptions")["items"] if item["id"] == contract_id)
    gross = sum(int(each["gross_fen"]) for each in row["reservations"])
    paid = sum(int(each["used_fen"]) for each in row["reservations"])
    return {"gross_fen": gross, "voucher_fen": paid, "self_paid_fen": gross - paid}


def write_export(tour: Tour, folder: Path, name: str, modes: dict[str, dict[str, Any]]) -> None:
    """`usage-<mode>.csv` as the factory downloads it, `prices.json` and `programmes.json` as they are published."""
    factory = tour["factory"]
    folder.mkdir(parents=True, exist_ok=True)
    for mode, receipt in modes.items():
        query = {"format": "csv", "subscription_id": receipt["subscription_id"]}
        (folder / f"usage-{mode}.csv").write_bytes(factory.request("GET", "/api/v1/usage", params=query).content)
    for file, path in (("prices", f"/api/v1/models/{name}/prices"), ("programmes", "/api/v1/programmes")):
        text = json.dumps(factory.get(path), ensure_ascii=False, indent=1)
        (folder / f"{file}.json").write_text(text + "\n", encoding="utf-8")
    tour.say(f"⑥ 用量与价格已导出 exported: {folder}")


def print_receipt(receipt: dict[str, Any]) -> None:
    """The receipt as a table: per mode, and in sum."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="回执 · Receipt", show_footer=True)
    heads = ("模式 mode", "调用 calls", "总额 gross 分", "券付 voucher 分", "自付 self-paid 分", "券余额 remaining 分")
    keys = ("calls", "gross_fen", "voucher_fen", "self_paid_fen", "voucher_remaining_fen")
    for head, key in zip(heads, ("", *keys), strict=True):
        table.add_column(head, justify="right", footer=str(receipt[key]) if key else "合计 sum")
    for mode, row in receipt["modes"].items():
        table.add_row(mode, *(str(row[key]) for key in keys))
    console = Console()
    console.print(table)
    console.print(f"账本平衡 ledger balanced: {receipt['ledger_balanced']}")
