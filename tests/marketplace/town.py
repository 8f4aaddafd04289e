"""A small town for tests of money: a vendor with priced, filed models, a factory with vouchers, operators, and a node.

The node is real: serving's own lease book and journal writer, the market's desk and ingest. Time is the market's clock,
set by the test.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, inspect
from sqlmodel import Session, select
from ulid import ULID

from marketplace.catalogue.prices import add_price
from marketplace.catalogue.tables import Filing, Listing, PriceVersion
from marketplace.clock import end_of_day_ms
from marketplace.db import reading, transaction
from marketplace.integrity.books import compare_all
from marketplace.ledger.posting import balance
from marketplace.ledger.rebuild import rebuild
from marketplace.ledger.tables import LedgerAccount
from marketplace.organisations.tables import Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.settings import Settings
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.vouchers import applications, dropping, issuing, subscriptions
from marketplace.vouchers.admission import MarketAdmission
from marketplace.vouchers.programme import ProgrammeFile, read_programme
from marketplace.vouchers.rollout import activate, load_programme
from marketplace.vouchers.tables import NEVER_ISSUED, Programme, Voucher
from serving.journal import JournalWriter
from serving.leases import LeaseBook
from serving.metering import UsageRecord
from serving.ports import Principal, ServedVersion
from tests.marketplace.shelf import add_listing, add_organisation

START = 1_800_000_000_000  # 2027-01-15 in Shanghai
DAY = 86_400_000
CHEN, LIN = "mem_chen", "mem_lin"  # two operator members


def programme_file(**changes: Any) -> ProgrammeFile:
    document = {
        "code": "town",
        "title_zh": "演示券",
        "title_en": "Demonstration",
        "is_demo": True,
        "pool_fen": 1_000_000,
        "tranches": [{"code": "one", "fen": 1_000_000}],
        "ratio": {"num": 1, "den": 3},
        "cap_fen": 500_000,
        "cap_period": "programme",
        "validity": {"days": 30},
        "late_usage_grace_days": 1,
        "evidence_schema": [],
        "settlement_mode": "reimburse",
        "payee": "enterprise",
        "tax_basis": {"fee_bp": 500, "vat_bp": 600},
        "notice_days": 0,
    }
    return read_programme(document | changes)


@dataclass
class Town:
    """Organisations org_vendor, org_factory; listing vendor/steel at 0.37 fen a call, filed; nothing issued yet."""

    engine: Engine
    folder: Path
    now: int = START
    settings: Settings = field(default_factory=lambda: Settings(demo=False))
    began: int = field(init=False)  # `now` as it was first

    def __post_init__(self) -> None:
        self.began = self.now
        with transaction(self.engine) as session:
            for number, (slug, kind) in enumerate(
                [("vendor", "vendor"), ("factory", "enterprise"), ("other", "enterprise"), ("city", "operator")]
            ):
                add_organisation(session, slug, kind, uscc=demo_code(number), is_demo=True, legal_person="演示")
            session.add(
                Filing(
                    id="flg_1",
                    number="演示-不是备案号-1",
                    model_name="m",
                    holder="h",
                    valid_from="2026-01-01",
                    is_demo=True,
                )
            )
            session.flush()
            self.list_model(session, "vendor/steel", filing_id="flg_1")
        self.admission = MarketAdmission(self.engine, lambda token: PRINCIPAL, self.settings, lambda: self.now)
        self.desk = self.admission.desk

    def list_model(self, session: Session, name: str, micro: int | None = 370_000, **facts: Any) -> Listing:
        listing = add_listing(session, name, **facts)
        if micro is not None:
            self.price(session, listing, micro)
        return listing

    def price(self, session: Session, listing: Listing, micro: int, kind: str = "use", **facts: Any) -> PriceVersion:
        return add_price(
            session, listing, kind=kind, unit="calls", micro_per_unit=micro, actor="v", at_ms=self.now, **facts
        )

    def programme(self, **changes: Any) -> str:
        with transaction(self.engine) as session:
            row = load_programme(session, programme_file(**changes), actor=CHEN)
            if row.state == "draft":
                activate(session, row.id, {}, actor=CHEN, at_ms=self.now)
            return row.id

    def voucher(
        self, face_fen: int, programme: str = "", organisation: str = "org_factory", first: str = "", **changes: Any
    ) -> str:
        """Apply, check, approve, publish, confirm, propose by Chen, approve by Lin; answers the voucher's id.

        `first`: `decline` or `withdraw` a first proposal for all of it.
        """
        programme = programme or self.programme(**changes)
        with transaction(self.engine) as session:
            owner = session.get_one(Organisation, organisation)
            row = applications.create_application(session, owner, programme, requested_fen=face_fen, actor="f")
            applications.submit(session, row, actor="f")
            applications.check(session, row, actor=CHEN, at_ms=self.now)
            applications.decide(session, row, "approve", actor=CHEN, at_ms=self.now)
            applications.publish(session, row, actor=CHEN, at_ms=self.now)
            applications.confirm(session, row, actor=CHEN, at_ms=self.now)
            if first:
                proposed = issuing.propose(session, row, face_fen, member=CHEN, at_ms=self.now)
                drop, member = (dropping.decline, LIN) if first == "decline" else (dropping.withdraw, CHEN)
                drop(session, proposed, member=member, reason="not this one")
            voucher = issuing.propose(session, row, face_fen, member=CHEN, at_ms=self.now)
            return issuing.approve(session, voucher, member=LIN, at_ms=self.now).id

    def subscribe(self, contract_fen: int = 100_000, model: str = "vendor/steel", **terms: Any) -> str:
        with transaction(self.engine) as session:
            listing = session.exec(select(Listing).where(Listing.name == model)).one()
            given = {"on_voucher_end": "refuse", "monthly_cap_fen": None} | terms
            row, _ = subscriptions.subscribe(
                session, "org_factory", listing, contract_fen=contract_fen, actor="f", at_ms=self.now, **given
            )
            return row.id

    def node(self, name: str = "n1") -> Node:
        return Node(self, name)

    def get(self, kind: type, key: Any) -> Any:
        with reading(self.engine) as session:
            return session.get_one(kind, key)

    def rows(self, kind: type) -> list[Any]:
        """All rows of a table in the order of their keys: identifiers sort by time, while PostgreSQL itself hands
        rows out in any order."""
        with reading(self.engine) as session:
            return list(session.exec(select(kind).order_by(*inspect(kind).primary_key)))

    def balance(self, code: str) -> int:
        with reading(self.engine) as session:
            return balance(session, code)

    def total(self, prefix: str) -> int:
        """Sum of all accounts of a kind, such as Q.used."""
        return sum(row.balance_fen for row in self.rows(LedgerAccount) if row.code.startswith(prefix + "["))

    def pass_days(self, days: int) -> None:
        self.now += days * DAY

    def end_of(self, voucher_id: str) -> int:
        return end_of_day_ms(date.fromisoformat(self.get(Voucher, voucher_id).use_by))

    def check(self) -> None:
        """What must hold at every instant: invariants 1, 2, 3 and 9, and the pool conserved."""
        with reading(self.engine) as session:
            rebuilt = rebuild(session)
            assert rebuilt.sound, rebuilt.wrong
            books = compare_all(session)  # the cap counters and the meters too
            assert books.sound, books.wrong
            assert sum(fen for code, fen in rebuilt.balances.items() if code.startswith("Q.")) == 0
            assert all(
                fen >= 0 for code, fen in rebuilt.balances.items() if code.startswith("Q.") and "auth" not in code
            )
            for programme in session.exec(select(Programme).where(Programme.state == "active")):
                assert issuing.pool_position(session, programme)["conserved"]
            for voucher in session.exec(select(Voucher)):
                found = issuing.position(session, voucher)
                assert found["used_fen"] <= voucher.face_fen
                parts = ("available_fen", "reserved_fen", "leased_fen", "used_fen", "returned_fen")
                issued = voucher.state not in NEVER_ISSUED
                assert sum(found[part] for part in parts) == (voucher.face_fen if issued else 0)


PRINCIPAL = Principal("key_1", "org_factory", "enterprise", frozenset({"use"}), "mem_wang")


class Node:
    """A serving node: takes a lease, writes the journal, as the data plane does."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.name = town, name
        self.epoch = register_node(town.engine, town.folder, name)
        self.journal = JournalWriter(town.folder, name, self.epoch)
        self.book = LeaseBook(town.admission, name, self.epoch)
        self.ingest = Ingest(town.engine, town.folder, name)
        self.acknowledged: list[UsageRecord] = []

    def served(self, model: str) -> ServedVersion:
        return ServedVersion(
            f"ver_{model}", f"lst_{model}", model, 1, Path("/"), "d", True, f"org_{model.split('/')[0]}"
        )

    def call(
        self, model: str = "vendor/steel", count: int = 1, *, units: int = 1, purpose: str = "use",
        principal: Principal = PRINCIPAL, digest: str = "", runs_ms: int = 0,
    ) -> list[UsageRecord]:  # fmt: skip
        """`count` calls, each answered only once its record is in the journal. Raises the desk's refusals. `runs_ms`:
        how long after its admission each ends."""
        return asyncio.run(self._call(model, count, units, purpose, principal, digest, runs_ms))

    async def _call(
        self, model: str, count: int, units: int, purpose: str, principal: Principal, digest: str, runs_ms: int
    ) -> list[UsageRecord]:
        made = []
        for _ in range(count):
            bound = {"calls": units, "rows": units}
            reserved = await self.book.reserve(principal, self.served(model), bound, purpose)
            amount = reserved.amount_for(bound)
            record = UsageRecord(
                usage_id=str(ULID()),
                key_id=principal.key_id,
                organisation=principal.organisation,
                model=f"{model}@1",
                adapter="",
                price_version=reserved.price_version,
                lease_id=reserved.lease_id,
                units=bound,
                amount_micro=amount,
                occurred_at_ms=self.town.now + runs_ms,
                status="ok",
                request_digest=digest,
                response_digest="",
                purpose=purpose,
            )
            self.journal.usage(record)
            reserved.keep(amount)
            self.acknowledged.append(record)
            made.append(record)
        return made

    def flush(self) -> None:
        self.ingest.flush()

    def stop(self) -> None:
        """An orderly end: seal, ingest, settle."""
        self.journal.close()
        close_epoch(self.town.engine, self.town.folder, self.name, self.epoch)

    def die(self) -> None:
        """kill -9: the file stays as it is."""
        self.journal.close(seal=False)
