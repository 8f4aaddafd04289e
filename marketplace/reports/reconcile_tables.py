"""The reconciliation: what the ledger says against sources that do not come from it, one figure a row.

Usage rows against P5 less P13, vouchers' faces against every account they may be in, frozen documents and the
government's payments against claim accounts and what it owes, and what the last nightly check found of cap counters.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import col, select

from marketplace.claims.tables import ClaimBatch, ClaimLine, Clawback
from marketplace.clock import policy_date
from marketplace.integrity.metered import Metered, Used, decide_due, decide_may_wait, metered
from marketplace.integrity.tables import LedgerCheck
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry
from marketplace.reports.claim_tables import standing_of
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts
from marketplace.reports.voucher_tables import full_positions

_CHUNK = 500
_ROUNDED = "用量记录累计取整 · usage rows, rounded cumulatively"


@dataclass(frozen=True, slots=True)
class Match:
    """One figure from two sources, in fen. `may_wait`: what of `a` may wait for the gross fen that carries it."""

    what: str
    programme: str
    period: str
    of: str
    source_a: str
    a: int
    source_b: str
    b: int
    may_wait: int = 0

    @property
    def agrees(self) -> bool:
        """The ledger never has more than its source, and less by at most what may wait."""
        return 0 <= self.a - self.b <= self.may_wait

    def row(self) -> Row:
        return (self.what, self.programme, self.period, self.of, self.source_a, self.a, self.source_b, self.b,
                self.a - self.b, self.may_wait, None, None, self.agrees)  # fmt: skip


def _reconcile(facts: Facts) -> Iterator[Row]:
    """Every match, what the last nightly check found, then one row that says of how many rows something differs."""
    count = differing = 0
    for row in _rows(facts):
        count += 1
        differing += row[-1] is False
        yield row
    yield _counted("Σ", _period(facts), "", count, differing)


def _rows(facts: Facts) -> Iterator[Row]:
    for make in (_usage, _vouchers, _pools, _batches, _government):
        for match in make(facts):
            yield match.row()
    yield from _nightly(facts)


def _counted(what: str, period: str, of: str, compared: int | None, differing: int) -> Row:
    return what, "", period, of, "", None, "", None, None, None, compared, differing, not differing


def _period(facts: Facts) -> str:
    last = policy_date(facts.as_of_ms).isoformat()
    return f"{policy_date(facts.from_ms).isoformat()}/{last}" if facts.from_ms else last


# --- what was used against what was charged ---------------------------------------------------------------------------


def _usage(facts: Facts) -> Iterator[Match]:
    """By reservation (and self-paid contract): what its usage rows round to, cumulatively, and the fen posted. From a
    day on: by how much both grew since, with the subsidy that waited then."""
    now = metered(facts.session, facts.as_of_ms)
    before = metered(facts.session, facts.from_ms - 1) if facts.from_ms else Metered()
    for owner in sorted({*now.owners, *before.owners}):
        held = facts.reservations.get(owner)
        if held is None and facts.programme_id:
            continue
        ratio = (held.ratio_num, held.ratio_den) if held else (0, 1)
        (gross_0, charged_0, _, posted_0, _), (gross, charged, due, posted, may_wait) = (
            _ends(each.owners.get(owner, Used()), *ratio) for each in (before, now)
        )
        code = facts.programmes[facts.vouchers[held.voucher_id].programme_id].code if held else ""
        about = (code, _period(facts), owner)
        yield Match("usage-gross", *about, _ROUNDED, gross - gross_0, "P5 − P13", charged - charged_0)
        if held:  # with what waited when the period began: it is posted in it
            yield Match("usage-subsidy", *about, _ROUNDED, due - posted_0, "P5 − P13", posted - posted_0, may_wait)


def _ends(used: Used, num: int, den: int) -> tuple[int, int, int, int, int]:
    """Gross fen used and charged, subsidy fen due and posted, and what of that may wait."""
    gross, subsidy = decide_due(used, num, den)
    return gross, used.gross_fen, subsidy, used.subsidy_fen, decide_may_wait(used.corrections) if num else 0


# --- entitlement ------------------------------------------------------------------------------------------------------


def _went_back(facts: Facts) -> dict[str, int]:
    """Voucher → fen that went back to the pool, as posted: P8 of its own and of its reservations, and P12."""
    found = {key: facts.flows.get(("P8", accounts.available(key)), (0, 0))[1] for key in facts.vouchers}
    for key, row in facts.reservations.items():
        found[row.voucher_id] += facts.flows.get(("P8", accounts.reserved(key)), (0, 0))[1]
    for key in found.keys() & facts.claimed.keys():
        found[key] += facts.claimed[key].rejected
    return found


def _vouchers(facts: Facts) -> Iterator[Match]:
    """Each voucher's face against all the accounts that it may be in, what went back to the pool among them."""
    back = _went_back(facts)
    for row, where in full_positions(facts):
        parts = sum(fen for part, fen in where.items() if part != "returned")
        issued = policy_date(row.issued_at_ms or row.created_at_ms).isoformat()
        yield Match("voucher-face", facts.programmes[row.programme_id].code, f"{issued}/{row.use_by}", row.id,
                    "票面 · face value", row.face_fen, "Q.* + P8 + P12", parts + back[row.id])  # fmt: skip


def _pools(facts: Facts) -> Iterator[Match]:
    """What is unissued and stands in vouchers, by their faces, against what was authorised."""
    back, issued = _went_back(facts), defaultdict[str, int](int)
    for row, _ in full_positions(facts):
        issued[row.programme_id] += row.face_fen - back[row.id]
    for key, programme in facts.programmes.items():
        if authorised := -facts.balances[accounts.auth(key)]:
            standing = facts.balances[accounts.unissued(key)] + issued[key]
            yield Match("pool", programme.code, _period(facts), f"{programme.code} v{programme.version}",
                        "未发放与票面 · unissued and faces", standing, "Q.auth", authorised)  # fmt: skip


# --- claims and payments ----------------------------------------------------------------------------------------------


def _batches(facts: Facts) -> Iterator[Match]:
    """Each frozen batch: its document and steps against P9 and Q.batch; its payment against P10."""
    history = facts.events_of("claim.")
    for key, batch in facts.by_id(ClaimBatch).items():
        frozen = next((event for event in history[key] if event.action == "claim.freeze"), None)
        if frozen is None or batch.programme_id not in facts.programmes:
            continue
        document = json.loads(facts.blobs.path(frozen.details["sha256"]).read_bytes())
        step, payment, states = standing_of(history[key])
        stands = [line for line in document["lines"] if states.get(line["line"], states[""]) == "in_batch"]
        account, code = accounts.batched(key), facts.programmes[batch.programme_id].code
        of = (code, f"{batch.from_day}/{batch.to_day}", key)
        frozen_fen = facts.flows.get(("P9", account), (0, 0))[0]
        yield Match("claim-transfers", *of, "冻结分录的 Q.used · Q.used of the claimed postings",
                    _used_by(facts, document), "P9", frozen_fen)  # fmt: skip
        yield Match("claim-document", *of, "冻结文件 · frozen document", document["total_fen"], "P9", frozen_fen)
        yield Match("claim-standing", *of, "未付行 · lines that stand, not paid",
                    sum(line["subsidy_fen"] for line in stands), "Q.batch", facts.balances[account])  # fmt: skip
        if step in ("confirm-payment", "reconcile"):
            paid = facts.flows.get(("P10", account), (0, 0))[1]
            yield Match("claim-payment", *of, "付款凭证 · payment entered", payment["amount_fen"], "P10", paid)


def _used_by(facts: Facts, document: dict[str, Any]) -> int:
    """What the ledger itself has as subsidy of the postings that a document claims."""
    wanted = [transfer["id"] for line in document["lines"] for transfer in line["transfers"]]
    total = 0
    for start in range(0, len(wanted), _CHUNK):
        query = sa.select(sa.func.sum(col(LedgerEntry.amount_fen))).where(
            col(LedgerEntry.transfer_id).in_(wanted[start : start + _CHUNK]),
            col(LedgerEntry.account).startswith(accounts.used("")[:-1], autoescape=True),
        )
        total += int(facts.session.connection().execute(query).scalar() or 0)
    return total


def _government(facts: Facts) -> Iterator[Match]:
    """By programme: confirmed payments and clawbacks against Q.paid, Q.claw, and what the government still owes."""
    unpaid, batched, clawed = _by_programme(facts)
    confirmed, open_fen = _clawbacks(facts)
    payments = _payments(facts)
    for key, programme in facts.programmes.items():
        owed = accounts.receivable_government(key)
        deduct = programme.document.get("settlement_mode") == "deduct"
        through_market = programme.document.get("payee") in ("provider", "platform")
        paid, of = payments.get(key, 0), (programme.code, _period(facts), f"{programme.code} v{programme.version}")
        if ("P1", accounts.unissued(key)) not in facts.flows:
            continue
        yield Match("paid", *of, "付款 − 追回 · payments less clawbacks", paid - confirmed.get(key, 0),
                    "Q.paid", facts.balances[accounts.paid(key)])  # fmt: skip
        yield Match(
            "clawed-back", *of, "已确认追回 · clawbacks confirmed", confirmed.get(key, 0), "Q.claw", clawed.get(key, 0)
        )
        settled = facts.flows.get(("P10", owed), (0, 0))[1]
        yield Match("government-settled", *of, "付款凭证 · payments entered", paid if through_market else 0,
                    "M.recv.gov (P10)", settled)  # fmt: skip
        due = (unpaid.get(key, 0) + batched.get(key, 0) if deduct else 0) - open_fen.get(key, 0)
        yield Match("government-owes", *of, "Q.used + Q.batch − 未了追回 · less open clawbacks", due,
                    "M.recv.gov", facts.balances[owed])  # fmt: skip


def _by_programme(facts: Facts) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Programme → Q.used, Q.batch and Q.claw."""
    unpaid: dict[str, int] = {}
    for key, row in facts.reservations.items():
        programme = facts.vouchers[row.voucher_id].programme_id
        unpaid[programme] = unpaid.get(programme, 0) + facts.balances[accounts.used(key)]
    batched: dict[str, int] = {}
    clawed: dict[str, int] = {}
    for key, batch in facts.by_id(ClaimBatch).items():
        batched[batch.programme_id] = batched.get(batch.programme_id, 0) + facts.balances[accounts.batched(key)]
        clawed[batch.programme_id] = clawed.get(batch.programme_id, 0) + facts.balances[accounts.clawed_back(key)]
    return unpaid, batched, clawed


def _payments(facts: Facts) -> dict[str, int]:
    """Programme → fen of payments that two persons confirmed, as they were entered."""
    found: dict[str, int] = {}
    history = facts.events_of("claim.")
    for key, batch in facts.by_id(ClaimBatch).items():
        step, payment, _ = standing_of(history[key])
        if step in ("confirm-payment", "reconcile"):
            found[batch.programme_id] = found.get(batch.programme_id, 0) + payment["amount_fen"]
    return found


def _clawbacks(facts: Facts) -> tuple[dict[str, int], dict[str, int]]:
    """Programme → fen of clawbacks that were confirmed, and of those that are not over."""
    confirmed: dict[str, int] = {}
    standing: dict[str, int] = {}
    history = facts.events_of("clawback.")
    for key, row in facts.by_id(Clawback).items():
        steps = {event.action.partition(".")[2] for event in history[key]}
        if "confirm" not in steps:
            continue
        batch = facts.session.get_one(ClaimBatch, facts.session.get_one(ClaimLine, row.line_id).batch_id)
        confirmed[batch.programme_id] = confirmed.get(batch.programme_id, 0) + row.amount_fen
        if not steps & {"recover", "write-off"}:
            standing[batch.programme_id] = standing.get(batch.programme_id, 0) + row.amount_fen
    return confirmed, standing


# --- counters ---------------------------------------------------------------------------------------------------------


def _nightly(facts: Facts) -> Iterator[Row]:
    """A cap counter keeps no history: what the last nightly check by then found of counters (and of all else that it
    compares), the first differences one by one."""
    query = select(LedgerCheck).where(LedgerCheck.at_ms <= facts.as_of_ms).order_by(col(LedgerCheck.id).desc()).limit(1)
    last = facts.session.exec(query).first()
    if last is None:
        return
    day = policy_date(last.at_ms).isoformat()
    yield _counted("nightly-check", day, f"#{last.id}", last.accounts + last.caps, last.wrong_count)
    for wrong in last.wrong:
        what = f"nightly-{wrong['what']}"
        if wrong["what"] in ("account", "cap", "charge"):
            rebuilt, kept = sum(wrong["rebuilt"]), sum(wrong["kept"])
            *cells, _ = Match(what, "", day, wrong["of"], "重算 · rebuilt", rebuilt, "留存 · kept", kept).row()
            yield *cells, False  # two of its figures may differ and their sums agree
        else:  # of meters, in micro-fen, and of transfers that do not balance: named only
            yield _counted(what, day, wrong["of"], None, 1)


RECONCILE = Report(
    "reconcile",
    "核对: 总账与其独立来源",
    "Reconciliation: the ledger against its independent sources",
    columns("""
what text 事项 | what
programme text 券项目 | programme
period text 期间 | period
of text 对象 | of
source_a text 来源甲 | source A
a_fen fen 甲 | A
source_b text 来源乙 (总账) | source B (the ledger)
b_fen fen 乙 | B
difference_fen fen 差额 | difference
may_wait_fen fen 可待入账 | may wait for its gross fen
compared integer 比对数 | compared
differing integer 不符数 | differing
ok flag 相符 | agrees
"""),
    _reconcile,
    verdict="ok",
)
