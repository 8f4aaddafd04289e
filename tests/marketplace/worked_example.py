"""The story of docs/vouchers-worked-example.md, played with the market's own functions, a real node and its journal.

The programme is the shipped file of Dongguan's model voucher. What that file leaves open is named at its activation, as
a person would, once for each way of settling. The enterprise, the provider and the filing are invented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import yaml
from sqlalchemy import Engine
from sqlmodel import Session, select

from marketplace.catalogue.tables import Filing
from marketplace.claims import batches, clawbacks, corrections, invoices
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.claims.tracing import claim_of, correction_of, line_trace
from marketplace.clock import end_of_day_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.organisations.tables import Organisation
from marketplace.usage.replay import Replay, replay
from marketplace.usage.tables import Usage
from marketplace.vouchers import applications, closing, issuing
from marketplace.vouchers.programme import FOLDER, ProgrammeFile, read_programme
from marketplace.vouchers.rollout import activate, load_programme, rules_of
from marketplace.vouchers.tables import Application, LeaseRow, Programme, Reservation, Subscription, Voucher
from model_store.blobs import FolderBlobs
from serving.journal_format import UsageEntry, read_segment, segment_path
from tests.marketplace.town import CHEN, DAY, LIN, Node, Town

FILE = "dongguan-model-2025.yaml"
OPEN = {
    "ratio": {"num": 3, "den": 5},
    "validity": {"days": 30, "redeem_days": 60},
    "evidence_schema": [],
    "tax_basis": {"fee_bp": 500, "vat_bp": 600},
}
WAYS = [("reimburse", "enterprise"), ("deduct", "platform"), ("deduct", "provider")]
FACES = (100, 400)  # fen: two vouchers small enough to follow every fen of
CONTRACT_FEN = 800


def document() -> dict[str, Any]:
    """The shipped file as it stands."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / FILE).read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Posted:
    """One transfer with the story's names for its accounts, in the order of its lines."""

    number: int
    day: str
    kind: str
    entries: list[tuple[str, int]]


@dataclass
class Call:
    """One call of the table, and what its reservation has come to once it is ingested."""

    lease: str
    amount_micro: int
    gross_micro: int
    eligible_micro: int
    posted_gross_fen: int
    posted_subsidy_fen: int


@dataclass
class Story:
    """`stages`: what was posted, stage by stage. `names`: an id → what the page calls it."""

    town: Town
    mode: str
    payee: str
    blobs: FolderBlobs
    names: dict[str, str] = field(default_factory=dict)
    stages: dict[str, list[Posted]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    lease: dict[str, Any] = field(default_factory=dict)  # as the node was given it, at the first call
    seen: int = 0
    programme: str = ""
    contract: str = ""

    # --- what is looked at afterwards ---------------------------------------------------------------------------------

    def rules(self) -> ProgrammeFile:
        return rules_of(self.town.get(Programme, self.programme))

    def name(self, code: str) -> str:
        """`Q.avail[vch_01…]` as `Q.avail[V1]`."""
        stem, _, rest = code.partition("[")
        return f"{stem}[{self.names[rest[:-1]]}]" if rest else stem

    def id_of(self, name: str) -> str:
        return next(key for key, told in self.names.items() if told == name)

    def mark(self, stage: str) -> list[Posted]:
        """What was posted since the last mark, as this stage's."""
        for kind, prefix in ((Reservation, "R"), (LeaseRow, "L"), (ClaimLine, "line ")):
            for number, row in enumerate(self.town.rows(kind), 1):
                self.names.setdefault(row.id, f"{prefix}{number}")
        found = list(self._posted())
        self.stages[stage] = self.stages.get(stage, []) + found
        return found

    def _posted(self) -> Iterator[Posted]:
        with reading(self.town.engine) as session:
            query = select(LedgerTransfer).where(LedgerTransfer.id > self.seen).order_by(LedgerTransfer.id)
            for row in session.exec(query):
                lines = select(LedgerEntry).where(LedgerEntry.transfer_id == row.id).order_by(LedgerEntry.line)
                entries = [(self.name(each.account), each.amount_fen) for each in session.exec(lines)]
                self.seen = row.id or 0
                yield Posted(self.seen, policy_date(row.occurred_at_ms).isoformat(), row.kind, entries)

    def journal(self, node: int) -> list[UsageEntry]:
        path = segment_path(self.town.folder, self.nodes[node].name, self.nodes[node].epoch)
        return [entry for entry in read_segment(path).entries if isinstance(entry, UsageEntry)]

    def replayed(self) -> list[Replay]:
        """Every journal against the ledger, as `algomart journal replay` does it."""
        with reading(self.town.engine) as session:
            return [replay(session, path) for path in sorted(self.town.folder.rglob("*")) if path.is_file()]

    def down(self, line: str) -> dict[str, Any]:
        with reading(self.town.engine) as session:
            row = session.get_one(ClaimLine, self.id_of(line))
            return line_trace(session, session.get_one(ClaimBatch, row.batch_id), row)

    def up(self, usage_id: str) -> dict[str, Any] | None:
        with reading(self.town.engine) as session:
            return claim_of(session, session.get_one(Usage, usage_id).transfer_id, to_operator=True)

    def corrected(self, usage_id: str) -> dict[str, Any] | None:
        with reading(self.town.engine) as session:
            return correction_of(session, usage_id)

    # --- the story ----------------------------------------------------------------------------------------------------

    def do(self, work: Callable[[Session], Any]) -> Any:
        with transaction(self.town.engine) as session:
            return work(session)

    def until(self, day: str) -> None:
        """The same hour of a later day."""
        self.town.now += (date.fromisoformat(day) - policy_date(self.town.now)).days * DAY

    def real_parties(self) -> None:
        """The town's are demonstrations, and a real programme pays for none of them."""

        def change(session: Session) -> None:
            for number, row in enumerate(session.exec(select(Organisation))):
                row.is_demo, row.legal_person = False, f"person {number}"
                session.add(row)
            filing = session.get_one(Filing, "flg_1")
            filing.is_demo = False
            session.add(filing)

        self.do(change)
        self.names |= {"org_factory": "factory", "org_vendor": "vendor"}

    def set_up(self) -> None:
        values = OPEN | {"settlement_mode": self.mode, "payee": self.payee}

        def run(session: Session) -> str:
            row = load_programme(session, read_programme(document()), actor=CHEN)
            return activate(session, row.id, values, actor=CHEN, at_ms=self.town.now).id

        self.programme = self.do(run)
        self.names[self.programme] = "model"
        self.mark("pool")

    def applied(self, fen: int) -> str:
        """Applied for, checked, approved, and in its public notice."""

        def run(session: Session) -> str:
            owner = session.get_one(Organisation, "org_factory")
            row = applications.create_application(session, owner, self.programme, requested_fen=fen, actor="f")
            applications.submit(session, row, actor="f")
            applications.check(session, row, actor=CHEN, at_ms=self.town.now)
            applications.decide(session, row, "approve", actor=CHEN, at_ms=self.town.now)
            applications.publish(session, row, actor=CHEN, at_ms=self.town.now)
            self.checks = self.checks or row.checks
            return row.id

        return str(self.do(run))

    def issued(self, application: str, name: str) -> None:
        def run(session: Session) -> str:
            row = session.get_one(Application, application)
            applications.confirm(session, row, actor=CHEN, at_ms=self.town.now)
            voucher = issuing.propose(session, row, row.requested_fen, member=CHEN, at_ms=self.town.now)
            return issuing.approve(session, voucher, member=LIN, at_ms=self.town.now).id

        self.names[self.do(run)] = name

    def issue_two(self) -> None:
        first = self.applied(FACES[0])
        self.until("2027-01-20")
        self.issued(first, "V1")
        self.until("2027-01-25")
        second = self.applied(FACES[1])
        self.until("2027-01-30")
        self.issued(second, "V2")
        self.mark("issue")

    def sign(self) -> None:
        self.contract = self.town.subscribe(CONTRACT_FEN)
        self.mark("contract")

    def call(self, node: Node, count: int) -> None:
        node.call(count=count)
        node.flush()
        self.mark("calls")

    def as_held(self, node: Node) -> dict[str, Any]:
        (held,) = node.book.leases()
        found: dict[str, Any] = msgspec.to_builtins(held.lease)
        return found

    def first_calls(self) -> None:
        """Eight calls, each ingested by itself; then as many in larger batches as both vouchers pay some of."""
        node = self.town.node("edge")
        self.nodes.append(node)
        for _ in range(8):
            self.call(node, 1)
            self.lease = self.lease or self.as_held(node)
            (row,) = [each for each in self.town.rows(Reservation) if self.names[each.id] == "R1"]
            record = node.acknowledged[-1]
            amounts = (row.cum_gross_micro, row.cum_eligible_micro, row.posted_gross_fen, row.posted_subsidy_fen)
            self.calls.append(Call(self.names[record.lease_id], record.amount_micro, *amounts))
        for count in (92, 350, 20, 126):
            self.call(node, count)
        node.stop()
        self.mark("sealed")

    def correct(self) -> None:
        self.until("2027-02-01")
        last = self.nodes[0].acknowledged[-1].usage_id
        row = self.do(lambda session: corrections.propose(session, last, "called twice by mistake", member=CHEN).id)
        self.do(
            lambda session: corrections.decide(
                session, corrections.get_correction(session, row), "post", member=LIN, at_ms=self.town.now
            )
        )
        self.mark("correction")

    def batch(self, name: str, from_day: str, to_day: str) -> str:
        """Made and frozen."""
        row = self.do(lambda session: batches.create(session, self.programme, from_day, to_day, member=CHEN).id)
        self.names[row] = name
        self.on(row, lambda session, found: batches.freeze(session, found, self.blobs, **self.by(CHEN)))
        return str(row)

    def by(self, member: str) -> dict[str, Any]:
        return {"member": member, "at_ms": self.town.now}

    def on(self, batch: str, work: Callable[[Session, ClaimBatch], Any]) -> Any:
        return self.do(lambda session: work(session, batches.get_batch(session, batch)))

    def advance(self, batch: str, *decisions: str) -> None:
        for decision in decisions:
            self.on(batch, lambda session, row, d=decision: batches.advance(session, row, d, **self.by(LIN)))

    def claim(self) -> None:
        def invoice(session: Session) -> None:
            contract = session.get_one(Subscription, self.contract)
            invoices.enter(session, contract, number="26442000", amount_fen=220, issued_on="2027-02-01", actor="f")

        self.do(invoice)
        self.until("2027-02-02")
        batch = self.batch("B1", "2027-01-15", "2027-02-01")
        self.mark("freeze")
        self.advance(batch, "submit", "review", "publish")
        self.until("2027-02-08")
        self.advance(batch, "approve")
        total = self.town.get(ClaimBatch, batch).total_fen
        facts = {"reference": "T-2027-0208", "paid_on": "2027-02-08", "amount_fen": total}
        self.on(batch, lambda session, row: batches.enter_payment(session, row, **facts, **self.by(CHEN)))
        self.on(batch, lambda session, row: batches.confirm_payment(session, row, **self.by(LIN)))
        self.advance(batch, "reconcile")
        self.mark("payment")

    def claw_back(self) -> None:
        """All that was paid for the second voucher's line: the programme's policy is `full`."""
        self.until("2027-02-10")
        line = self.town.get(ClaimLine, self.id_of("line 2"))
        facts = (line.id, line.subsidy_fen, "the contract was for resale")
        row = self.do(lambda session: clawbacks.open_clawback(session, *facts, member=CHEN).id)
        for decision, member in (("confirm", LIN), ("demand", CHEN), ("recover", CHEN)):

            def decide(session: Session, decision: str = decision, member: str = member) -> None:
                clawbacks.decide(session, clawbacks.get_clawback(session, row), decision, **self.by(member))

            self.do(decide)
        self.mark("clawback")

    def second_batch(self) -> None:
        """More calls; their line is returned, claimed again, and then finally rejected."""
        self.until("2027-02-12")
        node = self.town.node("edge-2")
        self.nodes.append(node)
        node.call(count=50)
        node.stop()
        self.mark("more calls")
        for name, decision in (("B2", "return"), ("B3", "reject")):
            batch = self.batch(name, "2027-02-12", "2027-02-12")
            self.advance(batch, "submit")

            def decide(session: Session, row: ClaimBatch, decision: str = decision) -> None:
                (line,) = batches.lines_of(session, row, "in_batch")
                batches.decide_line(session, row, line, decision, reason="no invoice covers it", **self.by(LIN))

            self.on(batch, decide)
        self.mark("rejected")

    def end(self) -> None:
        """The first voucher lapses, the contract ends, the second voucher lapses."""
        grace = self.rules().late_usage_grace_days * DAY
        vouchers = [self.town.get(Voucher, self.id_of(name)) for name in ("V1", "V2")]
        over = [end_of_day_ms(date.fromisoformat(row.use_by)) + grace + 1 for row in vouchers]
        self.town.now = over[0]
        self.do(lambda session: closing.expire_vouchers(session, self.town.now))
        self.until("2027-02-28")
        self.do(
            lambda session: closing.end_contract(
                session, session.get_one(Subscription, self.contract), actor="f", at_ms=self.town.now
            )
        )
        self.town.now = over[1]
        self.do(lambda session: closing.expire_vouchers(session, self.town.now))
        self.mark("end")


def play(engine: Engine, folder: Path, mode: str, payee: str, patch_clock: Callable[[Town], None]) -> Story:
    """From the file to the last fen's return; the ledger is held against itself after every step."""
    town = Town(engine, folder / "journal")
    patch_clock(town)
    story = Story(town, mode, payee, FolderBlobs(folder / "blobs"))
    story.real_parties()
    steps = (
        story.set_up, story.issue_two, story.sign, story.first_calls, story.correct, story.claim, story.claw_back,
        story.second_batch, story.end,
    )  # fmt: skip
    for step in steps:
        step()
        town.check()
    return story
