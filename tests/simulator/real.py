"""The same kind of history against the whole market: real database, real desk, real journal files, real ingest.

A step is one call at a node (admitted under a lease, written to its journal, acknowledged) or one other action. The
actions are drawn from the seed; row ids are the market's own and differ from run to run.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import Engine, text

import serving.leases
from marketplace.claims import batches, corrections
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.clock import policy_date
from marketplace.db import open_database, reading, transaction
from marketplace.integrity.books import compare_all
from marketplace.ledger import accounts
from marketplace.ledger.postings import cumulative_share
from marketplace.ledger.rebuild import rebuild
from marketplace.ledger.tables import LedgerAccount
from marketplace.migrations.upgrade import upgrade
from marketplace.organisations.uscc import demo_code
from marketplace.usage import recovery
from marketplace.usage.tables import SelfPayMeter, Usage
from marketplace.vouchers import closing, ending, issuing, revoking
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import DROPPED, OVER, LeaseRow, Programme, Reservation, Subscription, Voucher
from model_store.blobs import MemoryBlobs
from model_store.errors import Refusal
from serving.journal import segment_path
from serving.journal_format import UsageEntry, read_segment
from serving.metering import MICRO_PER_FEN, UsageRecord
from tests.marketplace.shelf import add_organisation
from tests.marketplace.town import CHEN, LIN, Node, Town
from tests.simulator.books import Violation
from tests.simulator.real_losing import MODELS, RealLosing
from tests.simulator.world import RATIOS

HOUR_MS = 3_600_000


@contextlib.contextmanager
def fresh_market(url: str) -> Iterator[tuple[Engine, Path]]:
    """An empty market made by its migrations, and a folder for its journals. `url` "": a SQLite file."""
    with tempfile.TemporaryDirectory(prefix="sim") as folder:
        engine = open_database(url or f"sqlite:///{folder}/market.db")
        try:
            if url:
                with engine.begin() as connection:
                    connection.execute(text("DROP SCHEMA public CASCADE"))
                    connection.execute(text("CREATE SCHEMA public"))
            upgrade(engine)
            yield engine, Path(folder)
        finally:
            engine.dispose()


def run_real(seed: int, steps: int, url: str = "") -> dict[str, int]:
    """One history on a real store; what happened, in numbers. Raises `Violation` and what the market raises."""
    with fresh_market(url) as (engine, folder):
        world = RealWorld(seed, engine, folder)
        clocks = [patch.object(module, "now_ms", lambda: world.town.now) for module in (serving.leases, recovery)]
        with clocks[0], clocks[1]:
            try:
                world.run(steps)
            finally:
                world.town.admission.close()
        return world.counts


class RealWorld:
    def __init__(self, seed: int, engine: Engine, folder: Path) -> None:
        self.dice = dice = random.Random(seed)
        self.town = Town(engine, folder / "journal")
        self.blobs = MemoryBlobs()
        num, den = dice.choice(RATIOS)
        mode, payee = dice.choice((("reimburse", "enterprise"), ("deduct", "platform")))
        if payee == "platform":  # by dice of its own: the rest of a seed's history does not depend on who is paid
            payee = random.Random(f"payee {seed}").choice(("platform", "provider"))
        self.mode, self.payee = mode, payee
        self.programme = self.town.programme(
            ratio={"num": num, "den": den}, validity={"days": 3}, settlement_mode=mode, payee=payee
        )
        with transaction(engine) as session:
            add_organisation(session, "mill", "vendor", uscc=demo_code(4), is_demo=True, legal_person="演示")
            self.town.list_model(session, MODELS[1], dice.choice((1, 999_999, 12_345_678)), filing_id="flg_1")
        self.nodes: dict[str, Node] = {}
        self.dead: dict[str, Node] = {}
        self.subscriptions: dict[str, str] = {}
        self.written: dict[str, UsageRecord] = {}
        self.lost: set[str] = set()
        self.losing = RealLosing(self)
        self.counts: dict[str, int] = defaultdict(int)
        actions: list[tuple[Callable[[], int], float]] = [
            (self.calls, 40), (self.ingest, 10), (self.kill, 2), (self.power_cut, 1), (self.recover, 4), (self.stop, 1),
            (self.issue, 3), (self.subscribe, 4), (self.end_contract, 1), (self.tick, 4), (self.hours, 1),
            (self.lapse, 1),
            (self.suspend, 0.5), (self.revoke, 1), (self.freeze, 1), (self.decide_claim, 2), (self.correct, 2),
            (self.losing.lose, 0.5), (self.losing.propose, 2), (self.losing.decide, 2), (self.losing.arrive, 1),
            (self.losing.turn_up, 0.5),
        ]  # fmt: skip
        self._actions = [action for action, _ in actions]
        self._cumulated = list(accumulate(weight for _, weight in actions))

    def run(self, steps: int) -> None:
        done = 0
        while done < steps:
            at = bisect(self._cumulated, self.dice.random() * self._cumulated[-1])
            done += self._actions[min(at, len(self._actions) - 1)]()
        for name in [*self.nodes]:
            self._die(name)
        for name in [*self.dead]:
            self._close(name)
        self.losing.finish()
        self._pay()
        self.check()
        self.counts["steps"] += done

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _node(self) -> Node | None:
        name = self.dice.choice(("n1", "n2", "n3"))
        if name in self.dead:
            return None
        if name not in self.nodes:
            self.nodes[name] = self.town.node(name)
        return self.nodes[name]

    def calls(self) -> int:
        node, count = self._node(), self.dice.choice((1, 20, 1_000))
        if node is None:
            return 1
        before = len(node.acknowledged)
        with contextlib.suppress(Refusal):
            node.call(self.dice.choice(MODELS), count, units=self.dice.choice((1, 1, 3, 40)))
        made = node.acknowledged[before:]
        self.written.update((record.usage_id, record) for record in made)
        self.counts["calls"] += len(made)
        return max(1, len(made))

    def ingest(self) -> int:
        node = self._node()
        if node is not None:
            node.flush()
        return 1

    def kill(self) -> int:
        """kill -9, perhaps in the middle of a write."""
        if self.nodes:
            name = self.dice.choice(sorted(self.nodes))
            self._die(name)
            with self._file(self.dead[name]).open("ab") as file:
                file.write(self.dice.choice((b"", bytes(40), b"\x20\x00\x00\x00torn", self.dice.randbytes(30))))
            self.counts["kills"] += 1
        return 1

    def power_cut(self) -> int:
        """Bytes of the end are gone: here of all that was not read yet, as if nothing of it had been synced."""
        if self.nodes:
            name = self.dice.choice(sorted(self.nodes))
            self._die(name)
            path = self._file(self.dead[name])
            os.truncate(path, self.dice.randint(max(0, path.stat().st_size - 5_000), path.stat().st_size))
            left = {e.usage.usage_id for e in self._entries(path)}
            self.lost |= {record.usage_id for record in self.dead[name].acknowledged if record.usage_id not in left}
            self.counts["power_cuts"] += 1
        return 1

    def _entries(self, path: Path) -> list[UsageEntry]:
        if path.stat().st_size < 100:  # not even the header may be left
            return []
        return [entry for entry in read_segment(path).entries if isinstance(entry, UsageEntry)]

    def _file(self, node: Node) -> Path:
        return segment_path(self.town.folder, node.name, node.epoch)

    def _die(self, name: str) -> None:
        node = self.dead[name] = self.nodes.pop(name)
        node.die()

    def recover(self) -> int:
        if self.dead:
            self._close(self.dice.choice(sorted(self.dead)))
        return 1

    def _close(self, name: str) -> None:
        """What a start does before it opens the next epoch: seal, ingest, settle."""
        del self.dead[name]
        self.nodes[name] = self.town.node(name)
        if self.dice.random() < 0.3:
            self.nodes.pop(name).stop()
        self.counts["recoveries"] += 1

    def stop(self) -> int:
        if self.nodes:
            self.nodes.pop(self.dice.choice(sorted(self.nodes))).stop()
        return 1

    # --- the city and the factory -----------------------------------------------------------------------------------

    def issue(self) -> int:
        face, first = self.dice.choice((1, 20, 900, 20_000)), self.dice.choice(("", "", "decline", "withdraw"))
        with contextlib.suppress(Refusal):  # the enterprise's cap or the pool is reached
            self.town.voucher(face, self.programme, first=first)
            self.counts["dropped"] += bool(first)
        return 1

    def subscribe(self) -> int:
        model = self.dice.choice(MODELS)
        if model not in self.subscriptions:
            self.subscriptions[model] = self.town.subscribe(
                self.dice.choice((0, 10, 1_000, 50_000)), model,
                on_voucher_end="self_pay" if self.dice.random() < 0.7 else "refuse",
                monthly_cap_fen=self.dice.choice((None, 20, 5_000)),
            )  # fmt: skip
        return 1

    def end_contract(self) -> int:
        if self.subscriptions:
            subscription = self.subscriptions.pop(self.dice.choice(sorted(self.subscriptions)))
            with transaction(self.town.engine) as session:
                row = session.get_one(Subscription, subscription)
                closing.end_contract(session, row, actor="f", at_ms=self.town.now)
            for node in self.nodes.values():
                node.book.expire("org_factory")
        return 1

    def tick(self) -> int:
        self.town.now += self.dice.randint(1, 300_000)
        return 1

    def hours(self) -> int:
        self.town.now += self.dice.randint(1, 40) * HOUR_MS
        return 1

    def lapse(self) -> int:
        with transaction(self.town.engine) as session:
            self.counts["lapsed"] += len(closing.expire_vouchers(session, self.town.now))
        with transaction(self.town.engine) as session:
            self.counts["closed"] += len(ending.close_vouchers(session, self.town.now))
        return 1

    def suspend(self) -> int:
        with transaction(self.town.engine) as session:
            change = self.dice.choice((issuing.resume, issuing.suspend))
            for voucher in issuing.list_vouchers(session, None)[0]:
                with contextlib.suppress(Refusal):
                    change(session, voucher, actor=CHEN)
        return 1

    def revoke(self) -> int:
        """One voucher, by two persons; or the second says no, or the first takes it back."""
        vouchers = [row.id for row in self.town.rows(Voucher) if row.state in revoking.REVOCABLE]
        if vouchers:
            voucher, now = self.dice.choice(vouchers), self.town.now
            with transaction(self.town.engine) as session:
                revoking.propose(session, voucher, "simulated", member=CHEN)
            with transaction(self.town.engine) as session:
                decision = self.dice.choice(("confirm", "confirm", "decline", "withdraw"))
                if decision == "confirm":
                    revoking.confirm(session, voucher, member=LIN, at_ms=now)
                    self.counts["revoked"] += 1
                elif decision == "decline":
                    revoking.decline(session, voucher, "simulated", member=LIN, at_ms=now)
                else:
                    revoking.withdraw(session, voucher, "", member=CHEN, at_ms=now)
        return 1

    def freeze(self) -> int:
        """Of a period that ends today or some days ago; whatever was corrected since, no line may ask for more than is
        there."""
        self._freeze_up_to(self.dice.choice((0, 0, 1, 2, 4)))
        return 1

    def _freeze_up_to(self, days_ago: int) -> None:
        last = policy_date(self.town.now - days_ago * 24 * HOUR_MS)
        try:
            with transaction(self.town.engine) as session:
                batch = batches.create(session, self.programme, "2027-01-01", last.isoformat(), member=CHEN)
                batches.freeze(session, batch, self.blobs, member=CHEN, at_ms=self.town.now)
                self.counts["batches"] += 1
        except Refusal as refused:
            if refused.code != "CLAIM_EMPTY":
                raise Violation(f"a freeze up to {last} ended in {refused.code}: {refused.details}") from refused

    def decide_claim(self) -> int:
        """The next thing that may be done with some batch that is under way."""
        self._decide_some()
        return 1

    def _decide_some(self) -> bool:
        """False where no batch is under way."""
        with contextlib.suppress(Refusal), transaction(self.town.engine) as session:
            under_way = [b for b in batches.list_batches(session) if b.state not in ("paid", "returned", "assembling")]
            if not under_way:
                return False
            self._advance(session, self.dice.choice(under_way))
        return True

    def _pay(self) -> None:
        """At the end, so that every history has payments: what is left is claimed, and the city pays what stands."""
        self._freeze_up_to(0)
        for _ in range(200):  # most; a batch may be refused again and again
            if not self._decide_some():
                break

    def _advance(self, session: object, batch: ClaimBatch) -> None:
        now, dice = self.town.now, self.dice
        lines = batches.lines_of(session, batch, "in_batch")  # type: ignore[arg-type]
        if lines and batch.state in batches.LINES_OPEN and dice.random() < 0.3:
            decision = dice.choice(("return", "reject"))
            batches.decide_line(session, batch, dice.choice(lines), decision, member=LIN, at_ms=now, reason="simulated")  # type: ignore[arg-type]
        elif batch.state == "approved":
            facts = {"reference": batch.id, "paid_on": "2027-01-20", "amount_fen": batch.total_fen}
            batches.enter_payment(session, batch, **facts, member=CHEN, at_ms=now)  # type: ignore[arg-type]
        elif batch.state == "paying":
            batches.confirm_payment(session, batch, member=LIN, at_ms=now)  # type: ignore[arg-type]
        else:
            steps = {"frozen": "submit", "submitted": "review", "reviewed": "publish", "public_notice": "approve"}
            batches.advance(session, batch, steps[batch.state], member=LIN, at_ms=now)  # type: ignore[arg-type]

    def correct(self) -> int:
        recent = [usage for usage in list(self.written)[-2_000:] if usage not in self.lost]
        if recent:
            with contextlib.suppress(Refusal), transaction(self.town.engine) as session:
                row = corrections.propose(session, self.dice.choice(recent), "simulated", member=CHEN)
                corrections.decide(session, row, "post", member=LIN, at_ms=self.town.now)
                self.counts["corrections"] += 1
        return 1

    # --- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """With every epoch sealed: the books, every record charged once, every reservation's and contract's sum."""
        self._check_books()
        rows = {row.usage_id: row for row in self.town.rows(Usage)}
        missing = set(self.written) - self.lost - set(rows)
        if missing or set(rows) - set(self.written):
            foreign = len(set(rows) - set(self.written))
            raise Violation(f"{len(missing)} acknowledged records are not posted, {foreign} came from nowhere")
        wrong = [row.usage_id for row in rows.values() if row.amount_micro != self.written[row.usage_id].amount_micro]
        kept_out = {row.usage_id: row.reason for row in rows.values() if row.status == "quarantined"}
        late = self.losing.uncovered
        wrong += [each for each, why in kept_out.items() if why != "LEASE_WRITTEN_OFF" or each not in late]
        self.counts["uncovered"] += len(kept_out)
        if wrong:
            raise Violation(f"charged otherwise than written, or quarantined: {wrong[:3]}")
        self._check_meters(rows)
        self._check_money()
        self.counts["charged"] += len(rows)

    def _check_books(self) -> None:
        with reading(self.town.engine) as session:
            rebuilt = rebuild(session)
            pool = issuing.pool_position(session, session.get_one(Programme, self.programme))
            compared = compare_all(session)
        if not compared.sound:
            raise Violation(f"rebuilt from the entries: {compared.wrong[:5]}")
        entitlement = {code: fen for code, fen in rebuilt.balances.items() if code.startswith("Q.")}
        below = [code for code, fen in entitlement.items() if fen < 0 and "auth" not in code]
        if not rebuilt.sound or sum(entitlement.values()) or below or not pool["conserved"]:
            raise Violation(f"the books: {rebuilt.wrong} {sum(entitlement.values())} {below} {pool}")

    def _check_meters(self, rows: dict[str, Usage]) -> None:
        corrected = self._corrected()
        micro: dict[str, int] = defaultdict(int)
        may_wait: dict[str, int] = defaultdict(lambda: 1)  # fen of subsidy: each record taken back leaves room for one
        for row in rows.values():
            if row.usage_id in corrected:
                may_wait[row.reservation_id] += 1
            elif row.status != "quarantined":
                micro[row.reservation_id or row.subscription_id] += row.amount_micro
        open_leases = [lease.id for lease in self.town.rows(LeaseRow) if lease.state in closing.OPEN]
        for row in self.town.rows(Reservation):
            due = row.cum_eligible_micro * row.ratio_num // (row.ratio_den * MICRO_PER_FEN)
            waits = due - row.posted_subsidy_fen
            right = row.posted_gross_fen == micro[row.id] // MICRO_PER_FEN and 0 <= waits <= may_wait[row.id]
            if row.cum_gross_micro != micro[row.id] or not right:
                raise Violation(f"{row.id}: records sum to {micro[row.id]}, the row says {row}")
            if row.state not in ("held", "drawing") and self.town.balance(f"Q.resv[{row.id}]"):
                raise Violation(f"{row.id} is {row.state} and still holds entitlement")
        if open_leases:
            raise Violation(f"open after all was sealed: {open_leases[:3]}")
        codes = [row.code for row in self.town.rows(LedgerAccount)]
        for voucher in self.town.rows(Voucher):
            if voucher.state in DROPPED and any(voucher.id in code for code in codes):
                raise Violation(f"{voucher.id} was {voucher.state} and something was posted for it")
            self._check_over(voucher)

    def _check_over(self, voucher: Voucher) -> None:
        """Of one that is over all went back but what was used."""
        if voucher.state not in OVER:
            return
        with reading(self.town.engine) as session:
            found = issuing.position(session, voucher)
        held = found["available_fen"] + found["reserved_fen"] + found["leased_fen"]
        if held or found["used_fen"] + found["returned_fen"] != voucher.face_fen:
            raise Violation(f"{voucher.id} is {voucher.state}, and still holds or lost something: {found}")

    def _check_money(self) -> None:
        """What the city owes and has paid to whom, and what the market owes each provider: line by line, from the
        lines and the meters, where the books have it from the postings."""
        paid: dict[str, int] = defaultdict(int)
        decided = 0  # paid, or rejected and the enterprise's
        for line in self.town.rows(ClaimLine):
            paid[line.provider_id] += line.subsidy_fen if line.state == "accepted" else 0
            decided += line.subsidy_fen if line.state in ("accepted", "rejected") else 0
        reservations = self.town.rows(Reservation)
        deducted = sum(row.posted_subsidy_fen for row in reservations) - decided if self.mode == "deduct" else 0
        right = {accounts.receivable_government(self.programme): deducted}
        right[accounts.BANK] = sum(paid.values()) if self.payee == "platform" else 0
        terms = rules_of(self.town.get(Programme, self.programme)).terms()
        earned: dict[str, int] = defaultdict(int)
        for row in reservations:
            cut = sum(cumulative_share(0, row.posted_gross_fen, bp) for bp in (terms.fee_bp, terms.vat_bp))
            earned[row.provider_id] += row.posted_gross_fen - cut
        for meter in self.town.rows(SelfPayMeter):
            if not meter.month:  # carries the sum of all months
                earned[self.town.get(Subscription, meter.subscription_id).provider_id] += meter.posted_gross_fen
        for provider, fen in earned.items():
            directly = paid[provider] if self.payee == "provider" else 0
            right[accounts.payable_provider(provider)] = directly - fen
        wrong = {code: (self.town.balance(code), fen) for code, fen in right.items() if self.town.balance(code) != fen}
        if wrong:
            raise Violation(f"{self.mode}, {self.payee} is paid; account: (booked, right): {wrong}")
        self.counts[f"fen paid to {self.payee}"] += sum(paid.values())

    def _corrected(self) -> set[str]:
        with transaction(self.town.engine) as session:
            return {row.usage_id for row in corrections.list_corrections(session) if row.state == "posted"}
