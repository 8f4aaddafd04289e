"""The tables of docs/vouchers-worked-example.md as rows of cells, made of what the story has left in the market."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from fractions import Fraction
from typing import Any

import yaml

from marketplace.claims.decisions import ClaimFacts, decide_claim
from marketplace.clock import instant
from marketplace.db import reading
from marketplace.ledger.rebuild import trial_balance
from marketplace.ledger.tables import LedgerAccount
from marketplace.organisations.uscc import demo_code
from marketplace.usage.tables import Usage
from marketplace.vouchers import issuing
from marketplace.vouchers.applications import decide_notice_over
from marketplace.vouchers.eligibility import (
    FilingFact,
    Offer,
    Party,
    VoucherFact,
    burn_order,
    decide_cap,
    decide_coverage,
    decide_filed_model_exists,
    decide_pool,
    decide_share,
    decide_standing,
)
from marketplace.vouchers.grants import decide_grant
from marketplace.vouchers.reservations import decide_amount, held_vouchers
from marketplace.vouchers.tables import Voucher
from tests.marketplace.town import DAY, START
from tests.marketplace.worked_example import CONTRACT_FEN, FACES, OPEN, Posted, Story, document

Rows = list[list[str]]


# --- how a row is written ---------------------------------------------------------------------------------------------


def flow(value: Any) -> str:
    """A value as it stands in a YAML file, on one line."""
    return (
        "`"
        + yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
        + "`"
    )


def moves(entries: list[tuple[str, int]]) -> str:
    """`from → to: fen` where two lines are one movement, else each line with its sign."""
    said, left = [], list(entries)
    while left:
        (account, fen), following = left.pop(0), left[:1]
        if following and following[0][1] == -fen:
            left.pop(0)
            source, target = (account, following[0][0]) if fen < 0 else (following[0][0], account)
            said.append(f"`{source}` → `{target}`: {abs(fen):,}")
        else:
            said.append(f"`{account}` {fen:+,}")
    return ", ".join(said) or "–"


def split(posted: Posted) -> tuple[str, str]:
    q, m = ([each for each in posted.entries if each[0].startswith(ledger)] for ledger in ("Q.", "M."))
    money = ", ".join(f"`{account}` {fen:+,}" for account, fen in m)
    return moves(q), money or "–"


def posted(stories: list[Story], *stages: str, ways: int = 2, kinds: str = "") -> Rows:
    """One row a posting: day, number, entitlement, and the money in each way. Entitlement moves alike in all ways."""
    rows = []
    for each in zip(*([p for stage in stages for p in s.stages[stage]] for s in stories), strict=True):
        assert len({(p.kind, p.day, split(p)[0]) for p in each}) == 1
        if not kinds or each[0].kind in kinds.split():
            rows.append([each[0].day, each[0].kind, split(each[0])[0], *(split(p)[1] for p in each[:ways])])
    return rows


def outcome(decision: Any) -> str:
    return f"`{decision.reason}`" if decision.reason else "passes"


# --- the tables -------------------------------------------------------------------------------------------------------


def sources(stories: list[Story]) -> Rows:
    file = document()
    return [[each["en"], each["zh"], f"`{each['field']}`", flow(file[each["field"]])] for each in file["sources"]]


def left_open(stories: list[Story]) -> Rows:
    open_fields = [name for name, value in document().items() if value is None]
    documents = [story.rules().model_dump(mode="json") for story in stories]
    assert set(open_fields) == {*OPEN, "settlement_mode", "payee"}
    rows = []
    for name in open_fields:
        named = [OPEN.get(name, story_value) for story_value in (each[name] for each in documents)]
        rows.append([f"`{name}`", *map(flow, named)])
    return rows


def decisions(stories: list[Story]) -> Rows:
    rules = stories[0].rules()
    factory = Party("org_factory", "enterprise", "approved", demo_code(1))
    filing = FilingFact("演示-不是备案号-1", date(2026, 1, 1), None, is_demo=False)
    day = date(2027, 1, 15)
    room = rules.cap_fen
    notice = [decide_notice_over(START, rules.notice_days, START + days * DAY) for days in (4, 5)]
    assert notice == [False, True]
    made = {check["code"]: check["passed"] for check in stories[0].checks}
    assert made == dict.fromkeys(("standing", "uscc", "filing", "cap", "pool", "evidence"), True)
    return [
        ["`decide_standing`", "an approved enterprise", outcome(decide_standing(rules, factory))],
        ["`decide_standing`", "an approved vendor",
         outcome(decide_standing(rules, Party("org_v", "vendor", "approved", demo_code(2))))],
        ["`decide_filed_model_exists`", f"one filing, from {filing.first}, on {day}",
         outcome(decide_filed_model_exists(rules, [filing], day))],
        ["`decide_filed_model_exists`", "an empty register of filings",
         outcome(decide_filed_model_exists(rules, [], day))],
        ["`decide_cap`", f"100 asked, {room:,} left of the cap", outcome(decide_cap(rules, 100, room))],
        ["`decide_cap`", "100,000,001 asked", outcome(decide_cap(rules, 100_000_001, room))],
        ["`decide_cap`", "100 asked, 99 left of the cap", outcome(decide_cap(rules, 100, 99))],
        ["`decide_pool`", f"100 asked, {rules.pool_fen:,} in the pool", outcome(decide_pool(100, rules.pool_fen))],
        ["`decide_notice_over`", f"published {day}, {rules.notice_days} days, on {day + timedelta(days=4)}",
         "`NOTICE_RUNNING`"],
        ["`decide_notice_over`", f"published {day}, {rules.notice_days} days, on {day + timedelta(days=5)}", "passes"],
    ]  # fmt: skip


def call_decisions(stories: list[Story]) -> Rows:
    story, rules = stories[0], stories[0].rules()
    with reading(story.town.engine) as session:
        held = held_vouchers(session, "org_factory")
        names = [story.names[each.voucher] for each in burn_order(h.burnable for h in reversed(held))]
        uses = {story.names[h.voucher.id]: h.burnable.use_by for h in held}
    filing = FilingFact("n", date(2026, 1, 1), None, is_demo=False)
    filed = Offer(is_derivative=False, reuses_weights=True, filing=filing, tier="base")
    bare = Offer(is_derivative=False, reuses_weights=True, filing=None, tier="base")
    first = VoucherFact("active", uses["V1"], "active")

    def covered(offer: Offer = filed, on: date = date(2027, 1, 30), related: bool = False) -> str:
        return outcome(decide_coverage(rules, first, offer, related=related, contract_fen=CONTRACT_FEN, day=on))

    share = decide_share(rules, [(CONTRACT_FEN, Fraction(3, 5))], declared_fen=0).fen
    amounts = [decide_amount(FACES[0], share, 0), decide_amount(FACES[1], share, FACES[0])]
    late = uses["V1"] + timedelta(days=1)
    return [
        ["`burn_order`", f"V1 until {uses['V1']}, V2 until {uses['V2']}", ", ".join(names)],
        ["`decide_coverage`", f"V1, on {uses['V1']}", covered(on=uses["V1"])],
        ["`decide_coverage`", f"V1, on {late}", covered(on=late)],
        ["`decide_coverage`", "a model without a filing", covered(bare)],
        ["`decide_coverage`", "enterprise and provider are related", covered(related=True)],
        ["`decide_share`", f"a contract of {CONTRACT_FEN}, ratio 3/5", f"{share} fen"],
        ["`decide_amount`", f"V1 has {FACES[0]}, {share} allowed, 0 taken", f"{amounts[0]} fen"],
        ["`decide_amount`", f"V2 has {FACES[1]}, {share} allowed, {FACES[0]} taken", f"{amounts[1]} fen"],
        ["`decide_grant`", f"{FACES[0]} set aside, 1 node, 1 short, 0 held", f"{decide_grant(FACES[0], 1, 1, 0)} fen"],
        ["`decide_grant`", "1 set aside, 1 node, 1 short, 0 held", f"{decide_grant(1, 1, 1, 0)} fen"],
    ]  # fmt: skip


def claim_decisions(stories: list[Story]) -> Rows:
    rules = stories[0].rules()
    with reading(stories[0].town.engine) as session:
        redeem_by = date.fromisoformat(session.get_one(Voucher, stories[0].id_of("V1")).redeem_by)

    def decide(day: date, related: bool = False) -> str:
        facts = ClaimFacts([(166, 99)], related, redeem_by, 166, (), None, 99, None)
        return outcome(decide_claim(rules, facts, day))

    return [
        ["`decide_claim`", "line 1, on 2027-02-02", decide(date(2027, 2, 2))],
        ["`decide_claim`", f"line 1, on {redeem_by}", decide(redeem_by)],
        ["`decide_claim`", "line 1, a day later", decide(redeem_by + timedelta(days=1))],
        ["`decide_claim`", "line 1, the parties have become related", decide(date(2027, 2, 2), related=True)],
    ]


def lease(stories: list[Story]) -> Rows:
    held = stories[0].lease
    (line,) = held["prices"]
    names = stories[0].names
    return [
        ["`lease_id`", names[held["lease_id"]]],
        ["`kind`", f"`{held['kind']}`"],
        ["`reservation`", names[held["reservation"]]],
        ["`remaining_micro`", f"{held['remaining_micro']:,}"],
        ["`credit_micro`", f"{held['credit_micro']:,}"],
        ["`micro_per_unit`, `unit`", f"{line['micro_per_unit']:,}, `{line['unit']}`"],
        ["`ratio_num` / `ratio_den`", f"{line['ratio_num']} / {line['ratio_den']}"],
        ["`expires_at_ms` less `opened_at_ms`", f"{held['expires_at_ms'] - held['opened_at_ms']:,}"],
    ]


def record(stories: list[Story]) -> Rows:
    entry = stories[0].journal(0)[0]
    usage = entry.usage
    return [
        ["`seq`", str(entry.seq)],
        ["`organisation`", stories[0].names[usage.organisation]],
        ["`model`", f"`{usage.model}`"],
        ["`lease_id`", stories[0].names[usage.lease_id]],
        ["`units`", f"{usage.units['calls']} `calls`"],
        ["`amount_micro`", f"{usage.amount_micro:,}"],
        ["`occurred_at_ms`", instant(usage.occurred_at_ms).isoformat()],
        ["`status`, `purpose`", f"`{usage.status}`, `{usage.purpose}`"],
    ]


def calls(stories: list[Story]) -> Rows:
    rows = []
    for number, call in enumerate(stories[0].calls, 1):
        share, rest = divmod(call.eligible_micro * 3, 5)
        assert rest == 0
        figures = (call.gross_micro, share, call.posted_gross_fen, call.posted_subsidy_fen)
        rows.append([str(number), f"{call.amount_micro:,}", *(f"{figure:,}" for figure in figures)])
    return rows


def charges(stories: list[Story]) -> Rows:
    """P5 in columns: the calls in it, where its part goes, gross, the voucher's part, and each account of M."""
    rows = []
    numbers: dict[int | None, list[int]] = {}
    for row in stories[0].town.rows(Usage):
        if row.node == stories[0].nodes[0].name:
            numbers.setdefault(row.transfer_id, []).append(row.seq)
    both = zip(*(s.stages["calls"] for s in stories[:2]), strict=True)
    for reimburse, deduct in ((a, b) for a, b in both if a.kind == "P5"):
        ways = [dict(reimburse.entries), dict(deduct.entries)]
        used = next((account for account in ways[0] if account.startswith("Q.used")), "")
        owed = [way.get("M.recv.ent[factory]", 0) for way in ways]
        provider, fee, vat = (-ways[1].get(name, 0) for name in ("M.pay.provider[vendor]", "M.fee", "M.vat"))
        figures = [provider + fee + vat, ways[0].get(used, 0), *owed, ways[1].get("M.recv.gov[model]", 0)]
        within = numbers[reimburse.number]
        calls = f"{min(within)}–{max(within)}"
        assert len(within) == max(within) - min(within) + 1
        rows.append([calls, f"`{used}`" if used else "–", *map(str, [*figures, provider, fee, vat])])
    return rows


def grants(stories: list[Story]) -> Rows:
    return [row[2:3] for row in posted(stories, "calls", kinds="P4")]


def payments(stories: list[Story]) -> Rows:
    rows = []
    for story in stories:
        (paid,) = story.stages["payment"]
        rows.append([f"`{story.mode}`", f"`{story.payee}`", paid.kind, *split(paid)])
    return rows


def balances(stories: list[Story]) -> Rows:
    """At the end of the story: every account of M, and of Q what is not zero."""
    found: list[dict[str, int]] = []
    for story in stories:
        with reading(story.town.engine) as session:
            assert trial_balance(session)["balanced"]
        rows = story.town.rows(LedgerAccount)
        found.append({story.name(row.code): row.balance_fen for row in rows if row.ledger == "M" or row.balance_fen})
    names = sorted(set().union(*found), key=lambda name: (name[0] == "M", name))
    return [[f"`{name}`", *(f"{way.get(name, 0):,}" for way in found)] for name in names]


def vouchers(stories: list[Story]) -> Rows:
    rows = []
    with reading(stories[0].town.engine) as session:
        for name in ("V1", "V2"):
            row = session.get_one(Voucher, stories[0].id_of(name))
            found = issuing.position(session, row)
            figures = [found[part] for part in ("face_fen", "paid_fen", "clawed_fen", "returned_fen")]
            rows.append([name, row.state, *map(str, figures)])
    return rows


def down(stories: list[Story]) -> Rows:
    trace = stories[0].down("line 1")
    first = trace["usage"][0]
    invoice = trace["invoices"][0]
    backs = {stories[0].names[each["line"]]: each["fen"] for each in invoice["backs"]}
    line, ratio, filing = trace["line"], trace["ratio"], first["filing"]
    product = f"{first['units']} `{first['unit']}` × {first['micro_per_unit']:,} = {first['amount_micro']:,}"
    return [
        ["batch", f"B1, `{trace['batch']['state']}`, {trace['batch']['total_fen']} fen"],
        ["payment", f"`{trace['batch']['payment']['reference']}`, {trace['batch']['payment']['paid_on']}"],
        ["line", f"gross {line['gross_fen']}, subsidy {line['subsidy_fen']}, ratio {ratio[0]}/{ratio[1]}"],
        ["postings", f"{len(trace['transfers'])} × `{trace['transfers'][0]['kind']}`"],
        ["usage records", str(line["usage_count"])],
        ["first of them", product],
        ["its filing", f"`{filing['number']}`, valid at use: {'yes' if filing['valid_at_use'] else 'no'}"],
        ["contract", f"{trace['contract']['contract_fen']} fen"],
        ["invoice", f"`{invoice['number']}`, {invoice['amount_fen']} fen, {backs['line 1']} of them for line 1"],
    ]  # fmt: skip


def up(stories: list[Story]) -> Rows:
    rows = []
    for number in (1, 4, 451, 596):
        usage = stories[0].journal(0)[number - 1].usage.usage_id
        found, correction = stories[0].up(usage), stories[0].corrected(usage)
        taken = f"{correction['gross_fen']} and {correction['subsidy_fen']}" if correction else "–"
        told = ["–"] * 4
        if found:
            paid = found["payment"]
            told = [
                stories[0].names[found["line_id"]],
                stories[0].names[found["claim_id"]],
                f"`{paid['reference']}`",
                str(found["clawed_fen"]),
            ]
        rows.append([str(number), *told, taken])
    return rows


TABLES: dict[str, Callable[[list[Story]], Rows]] = {
    "sources": sources,
    "left open": left_open,
    "decisions": decisions,
    "issue": lambda s: posted(s, "pool", "issue", ways=0),
    "call decisions": call_decisions,
    "contract": lambda s: posted(s, "contract", ways=0),
    "lease": lease,
    "record": record,
    "calls": calls,
    "grants": grants,
    "charges": charges,
    "correction": lambda s: posted(s, "sealed", "correction"),
    "claim decisions": claim_decisions,
    "freeze": lambda s: posted(s, "freeze", ways=0),
    "payment": payments,
    "clawback": lambda s: posted(s, "clawback"),
    "rejected": lambda s: posted(s, "more calls", "rejected"),
    "end": lambda s: posted(s, "end", ways=0),
    "vouchers": vouchers,
    "balances": balances,
    "down": down,
    "up": up,
}


def as_table(rows: Rows) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sums(story: Story) -> list[float]:
    price = story.calls[0].amount_micro / 1_000_000
    records = [entry.usage for entry in story.journal(0)]
    first = [record for record in records if story.names[record.lease_id] == "L1"]
    second = [record for record in records if story.names[record.lease_id] == "L2"]
    contract = sum(fen for each in story.stages["contract"] for _, fen in each.entries if fen > 0)
    gross = [round(len(part) * price, 2) for part in (first, second, second[:-1])]
    charged = sum(fen for each in story.stages["calls"] for account, fen in each.entries if account == "Q.used[R2]")
    called = sum(fen for stage in story.stages.values() for each in stage for account, fen in each.entries
                 if account.startswith("M.recv.ent"))  # fmt: skip
    return [
        price, len(first), len(first) + 1, len(first) + len(second), len(second), len(story.journal(1)),
        *gross, int(gross[0]), int(gross[2]), round(gross[0] * 3 / 5, 1), round(gross[1] * 3 / 5, 3), charged,
        int(gross[2]) * 3 / 5, sum(FACES) - contract, story.calls[2].gross_micro / 1_000_000,
        story.calls[4].eligible_micro * 3 / 5_000_000, story.calls[2].eligible_micro * 3 / 5_000_000, 2 * 3 / 5, called,
        100, 1, 2, 3, 5,
    ]  # fmt: skip
