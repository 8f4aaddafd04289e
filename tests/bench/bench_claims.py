"""A quarter of synthetic trade, claimed: `python -m tests.bench.bench_claims [--enterprises 300] [--days 90]`.

Two shipped programmes (Dongguan's model voucher with its open values named, and the deducting demonstration), their
vouchers and contracts, and three months of calls through the shipped lease book, journal and ingest, under a seeded
clock; a day root every night. Then per programme a batch is frozen, its pack exported and judged offline by `algomart
verify`, each in a process of its own whose peak memory is told; and judged again with one byte of each of its files
flipped in turn: exit 1 where one of them is not noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine
from sqlmodel import Session, func, select

import serving.leases
from marketplace.catalogue.prices import add_price
from marketplace.catalogue.tables import Filing, Listing
from marketplace.claims import batches
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.clock import policy_date
from marketplace.db import create_tables, open_database, reading, snapshot, transaction
from marketplace.integrity.days import close_days
from marketplace.integrity.pack import write_pack
from marketplace.ledger import posting
from marketplace.ledger.rebuild import rebuild
from marketplace.ledger.tables import LedgerTransfer
from marketplace.organisations.tables import Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.usage.ingest import Ingest
from marketplace.usage.tables import Usage
from marketplace.vouchers import applications, issuing, subscriptions
from marketplace.vouchers.rollout import activate, get_programme, load_shipped
from model_store.blobs import FolderBlobs
from serving.ports import Principal, ServedVersion
from tests.bench.ledger_node import LedgerNode
from tests.bench.peak import peak_mib, told_by
from tests.marketplace.shelf import add_listing, add_organisation

Verify = Callable[[Path], tuple[int, dict[str, Any]]]
CHEN, LIN = "mem_chen", "mem_lin"  # two operator members
START = 1_798_762_800_000  # 08:20 in Shanghai on 2027-01-01
DAY, MINUTE = 86_400_000, 60_000
FACE_FEN, CONTRACT_FEN = 900_000, 2_700_000
OPEN_VALUES = {
    "ratio": {"num": 1, "den": 3}, "settlement_mode": "reimburse", "payee": "enterprise", "evidence_schema": [],
    "validity": {"days": 365, "redeem_days": 90}, "tax_basis": {"fee_bp": 0, "vat_bp": 600},
}  # fmt: skip
PRICES = (370_000, 1_250_000, 12_000_000, 33_333_333)  # micro-fen a call


@dataclass
class Trade:
    """One side of the town: a programme, its vendors' models, its enterprises. `is_demo`: the demonstration's."""

    programme: str
    is_demo: bool
    models: list[Listing] = field(default_factory=list)
    buyers: list[tuple[Principal, ServedVersion]] = field(default_factory=list)


class Quarter:
    """The market, its clock and its one node. Nothing but `seed` decides what is traded."""

    def __init__(self, engine: Engine, home: Path, enterprises: int, seed: int) -> None:
        self.engine, self.home, self.dice, self.now = engine, home, random.Random(seed), START
        self.trades = [Trade("dongguan-model-2025", False), Trade("demo-deduct", True)]
        with transaction(engine) as session:
            load_shipped(session, demo=True)
            activate(session, "dongguan-model-2025", OPEN_VALUES, actor=CHEN, at_ms=self.now)
            for number, trade in enumerate(self.trades):
                self._list(session, trade, number)
        for number in range(enterprises):
            with transaction(engine) as session:
                self._enter(session, self.trades[number % 3 == 2], number)
        self.node = LedgerNode(engine, home / "journal", "n1", lambda: self.now)
        self.ingest = Ingest(engine, home / "journal")

    def _list(self, session: Session, trade: Trade, side: int) -> None:
        """A vendor with four filed models, one at each price."""
        vendor = f"vendor{side}"
        add_organisation(session, vendor, uscc=demo_code(90_000 + side), is_demo=trade.is_demo, legal_person=vendor)
        number = f"{'演示-不是备案号' if trade.is_demo else 'Guangdong-备案'}-{side}"
        filing = Filing(
            id=f"flg_{side}", number=number, model_name="m", holder=vendor, valid_from="2026-01-01",
            is_demo=trade.is_demo,
        )  # fmt: skip
        session.add(filing)
        session.flush()
        for at, micro in enumerate(PRICES):
            listing = add_listing(session, f"{vendor}/m{at}", filing_id=filing.id)
            add_price(
                session, listing, kind="use", unit="calls", micro_per_unit=micro, actor=vendor, at_ms=self.now - DAY
            )
            trade.models.append(listing)

    def _enter(self, session: Session, trade: Trade, number: int) -> None:
        """One enterprise: application to voucher by two persons, and a contract on one model."""
        slug = f"factory{number}"
        owner = add_organisation(
            session, slug, "enterprise", uscc=demo_code(number), is_demo=trade.is_demo, legal_person=f"法人{number}"
        )
        self._issue(session, owner, get_programme(session, trade.programme).id)
        listing = trade.models[number % len(trade.models)]
        subscriptions.subscribe(
            session, owner.id, listing, contract_fen=CONTRACT_FEN, on_voucher_end="self_pay", monthly_cap_fen=None,
            actor=slug, at_ms=self.now,
        )  # fmt: skip
        vendor = listing.name.partition("/")[0]
        served = ServedVersion(
            f"ver_{listing.name}", listing.id, listing.name, 1, Path("/"), "d", True, f"org_{vendor}"
        )
        trade.buyers.append((Principal(f"key_{number}", owner.id, "enterprise", frozenset({"use"}), slug), served))

    def _issue(self, session: Session, owner: Organisation, programme: str) -> None:
        row = applications.create_application(session, owner, programme, requested_fen=FACE_FEN, actor=owner.id)
        applications.submit(session, row, actor=owner.id)
        applications.check(session, row, actor=CHEN, at_ms=self.now)
        applications.decide(session, row, "approve", actor=CHEN, at_ms=self.now)
        applications.publish(session, row, actor=CHEN, at_ms=self.now)
        applications.confirm(session, row, actor=CHEN, at_ms=self.now + 30 * DAY)  # the notice is over by then
        voucher = issuing.propose(session, row, FACE_FEN, member=CHEN, at_ms=self.now)
        issuing.approve(session, voucher, member=LIN, at_ms=self.now)

    def pass_day(self, active: float, calls: int) -> int:
        """A share `active` of the enterprises call their models, up to `calls` times each; the day is ingested, and
        the day before is closed. Answers how many calls were made."""
        made = 0
        for trade in self.trades:
            for principal, served in trade.buyers:
                if self.dice.random() < active:
                    made += asyncio.run(self._call(principal, served, self.dice.randint(1, calls)))
        self.ingest.flush()
        morning = START + (self.now - START) // DAY * DAY
        self.now = morning + DAY
        with transaction(self.engine) as session:
            close_days(session, self.now)
        return made

    async def _call(self, principal: Principal, served: ServedVersion, count: int) -> int:
        self.now += 2_000
        for _ in range(count):
            self.now += self.dice.randint(1, 40)
            units = self.dice.choice((1, 1, 1, 5, 20))
            digests = (f"b2:{self.dice.getrandbits(128):032x}", f"b2:{self.dice.getrandbits(128):032x}")
            await self.node.call(principal, served, {"calls": units, "rows": units, "ms": 3}, digests)
        return count


def claim(quarter: Quarter, trade: Trade, blobs: FolderBlobs, days: int) -> tuple[str, dict[str, Any]]:
    """Freeze what a programme owes for the quarter, and export it: (batch, what that took)."""
    first, last = (policy_date(START + day * DAY).isoformat() for day in (0, days - 1))
    with transaction(quarter.engine) as session:
        batch = batches.create(session, trade.programme, first, last, member=CHEN).id
    began = time.process_time()
    with transaction(quarter.engine) as session:
        batches.freeze(session, batches.get_batch(session, batch), blobs, member=CHEN, at_ms=quarter.now)
    frozen_s = time.process_time() - began
    for _ in range(2):  # P9 is of today: its day is closed too before the pack is made
        quarter.now += DAY
    with transaction(quarter.engine) as session:
        close_days(session, quarter.now)
    with reading(quarter.engine) as session:
        row = session.get_one(ClaimBatch, batch)
        lines = session.exec(
            select(func.count(), func.sum(ClaimLine.usage_count)).where(ClaimLine.batch_id == batch)
        ).one()
        total, document = row.total_fen, blobs.path(row.sha256).stat().st_size
    command = [sys.executable, "-m", "tests.bench.bench_claims", "--pack", batch, "--home", str(quarter.home)]
    packed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return batch, {
        "programme": trade.programme, "enterprises": len(trade.buyers), "lines": lines[0], "usage_records": lines[1],
        "total_fen": total, "document_bytes": document, "freeze_cpu_s": round(frozen_s, 2),
    } | packed  # fmt: skip


def pack_here(home: Path, batch: str) -> dict[str, Any]:
    """The pack of a batch, written by this process: CPU seconds, and its memory before and at its peak."""
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with snapshot(engine) as session:
        row, before = session.get_one(ClaimBatch, batch), peak_mib()
        began = time.process_time()
        path = write_pack(session, row, FolderBlobs(home / "blobs"), home / f"{batch}.zip")
        took = time.process_time() - began
    engine.dispose()
    return {
        "pack_bytes": path.stat().st_size, "pack_cpu_s": round(took, 2), "pack_rss_before_mib": before,
        "pack_peak_rss_mib": peak_mib(),
    }  # fmt: skip


def judge(pack: Path, verify: Verify) -> dict[str, Any]:
    """`algomart verify` on the pack, and on copies of it with one byte of one file flipped: which were noticed."""
    began = _cpu_with_children()
    code, told = verify(pack)
    took = _cpu_with_children() - began
    with zipfile.ZipFile(pack) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    unnoticed = []
    for name, content in files.items():
        forged = bytearray(content)
        forged[len(forged) // 2] ^= 1
        path = pack.with_suffix(".forged.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for each, whole in files.items():
                archive.writestr(each, bytes(forged) if each == name else whole)
        if verify(path)[0] != 1:
            unnoticed.append(name)
        path.unlink()
    sizes = {name: len(content) for name, content in files.items()}
    return {
        "holds": code == 0, "verify_cpu_s": round(took, 2), "verify_peak_rss_mib": told.get("peak_rss_mib"),
        "facts": told.get("facts"), "wrong": told.get("wrong"),
        "file_bytes": sizes, "flipped": len(files), "unnoticed": unnoticed,
    }  # fmt: skip


def _cpu_with_children() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def verify_offline(pack: Path) -> tuple[int, dict[str, Any]]:
    """The command in a process of its own: its exit status and what it told, with its peak memory."""
    command = [sys.executable, "-m", "tests.bench.peak", "marketplace.cli", "verify", str(pack), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout) if done.stdout else {"wrong": [done.stderr[-500:]]}
    return done.returncode, told | {"peak_rss_mib": told_by(done.stderr)}


def bench_claims(
    enterprises: int, days: int, seed: int, *, active: float = 0.33, calls: int = 60, verify: Verify = verify_offline
) -> dict[str, Any]:
    """The whole quarter in a temporary folder: what was traded, claimed and proved, with times and sizes."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="algomart-quarter-")))
        engine = open_database(f"sqlite:///{home / 'market.db'}")
        stack.callback(engine.dispose)
        create_tables(engine)
        with patch.object(posting, "now_ms", lambda: START):
            quarter = Quarter(engine, home, enterprises, seed)
        stack.callback(quarter.node.admission.close)
        stack.enter_context(patch.object(serving.leases, "now_ms", lambda: quarter.now))
        stack.enter_context(patch.object(posting, "now_ms", lambda: quarter.now))
        began = time.process_time()
        made = sum(quarter.pass_day(active, calls) for _ in range(days))
        quarter.node.stop()
        traded_s = time.process_time() - began
        blobs = FolderBlobs(home / "blobs")
        claims = []
        for trade in quarter.trades:
            batch, facts = claim(quarter, trade, blobs, days)
            claims.append(facts | judge(home / f"{batch}.zip", verify))
        with reading(engine) as session:
            posted = session.exec(select(func.count()).select_from(Usage).where(Usage.status == "ok")).one()
            transfers = session.exec(select(func.count()).select_from(LedgerTransfer)).one()
            sound = rebuild(session).sound
        return {
            "enterprises": enterprises, "days": days, "seed": seed, "calls": made, "posted": posted,
            "transfers": transfers, "sound": sound, "trade_cpu_s": round(traded_s, 1), "claims": claims,
            "database_bytes": sum(path.stat().st_size for path in home.glob("market.db*")),
            "peak_rss_mib": peak_mib(),
        }  # fmt: skip


def faults_of(result: dict[str, Any]) -> list[str]:
    faults = [] if result["sound"] and result["posted"] == result["calls"] else ["the ledger is not sound"]
    for each in result["claims"]:
        faults += [f"{each['programme']}: {wrong}" for wrong in each["wrong"] or ()]
        faults += [f"{each['programme']}: a flipped byte of {name} is not noticed" for name in each["unnoticed"]]
        if each["facts"] and each["facts"]["usage_records"] != each["usage_records"]:
            faults.append(f"{each['programme']}: the pack lacks usage records")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_claims", description="A quarter of trade, claimed"
    )
    parser.add_argument("--enterprises", type=int, default=300)
    parser.add_argument("--days", type=int, default=90, help="from 1 January 2027 on")
    parser.add_argument("--active", type=float, default=0.33, help="share of the enterprises that call on a day")
    parser.add_argument("--calls", type=int, default=60, help="calls of one on such a day, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pack", default="", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pack:
        print(json.dumps(pack_here(options.home, options.pack)))
        return 0
    result = bench_claims(options.enterprises, options.days, options.seed, active=options.active, calls=options.calls)
    result["faults"] = faults_of(result)
    json.dump(result, sys.stdout, indent=1, ensure_ascii=False)
    print()
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
