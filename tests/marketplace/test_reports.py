"""What the operator exports: each report against events that happened, and the same bytes for the same instant."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from openpyxl import load_workbook
from sqlmodel import select
from typer.testing import CliRunner

from marketplace.catalogue.tables import Filing, Listing
from marketplace.claims.tables import Invoice
from marketplace.cli import app as command_line
from marketplace.clock import end_of_day_ms, now_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.findings import dispositions, recording
from marketplace.integrity.days import close_days, leaves_of
from marketplace.integrity.segments import record_prefixes
from marketplace.integrity.tables import JournalSegment
from marketplace.keys.service import create_key, scopes_of_kind
from marketplace.ledger import posting
from marketplace.ledger.rebuild import trial_balance
from marketplace.ledger.tables import CapCounter
from marketplace.organisations.members import add_member
from marketplace.organisations.tables import Organisation
from marketplace.reports import api
from marketplace.reports.declared import UNITS
from marketplace.reports.pack import facts_of, find, instant_of, write_pack, write_report
from marketplace.reports.register import REPORTS
from marketplace.reports.writing import iso
from marketplace.usage.tables import Usage
from marketplace.vouchers import applications, closing, subscriptions
from marketplace.vouchers.applications import get_application
from marketplace.vouchers.overrides import decide_override, get_override, propose_override
from marketplace.vouchers.tables import Subscription
from model_store.errors import BadInput, NotFound
from tests.marketplace import test_claims as claims
from tests.marketplace.shelf import add_listing
from tests.marketplace.stores import on_both_stores, unguarded
from tests.marketplace.test_case_files import in_state
from tests.marketplace.test_claims import approved, bind_anew, pay, reject, trade
from tests.marketplace.town import CHEN, DAY, LIN, Town


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("test_the_command_line_packs_what_the_market_would_and_names_its_hash",))


@pytest.fixture
def began() -> int:
    """Today: audit events and postings are stamped by the machine's own clock."""
    return now_ms()


def instant() -> int:
    """Now; what happens afterwards is stamped later."""
    found = now_ms()
    time.sleep(0.003)
    return found


def report(town: Town, blobs: Any, name: str, as_of: int | None = None, **facts: str) -> list[dict[str, Any]]:
    folder = town.folder.parent / "out"
    folder.mkdir(exist_ok=True)
    with reading(town.engine) as session:
        found = facts_of(session, blobs, as_of or now_ms(), **facts)
        path, count = write_report(find(name), found, "json", folder)
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == count
    return rows


def test_a_report_leaves_the_session_s_connection_as_it_was(town, blobs, tmp_path):
    """An option that one streamed query sets there would hold for every later statement of the session."""
    trade(town)
    approved(town, blobs)
    changed = []
    for name in REPORTS:
        with reading(town.engine) as session:
            before = session.connection().get_execution_options()
            write_report(find(name), facts_of(session, blobs, now_ms()), "json", tmp_path)
            if session.connection().get_execution_options() != before:
                changed.append(name)
    assert changed == []


def pack(town: Town, blobs: Any, as_of: int, folder: Path, *forms: str) -> bytes:
    folder.mkdir(exist_ok=True)
    with reading(town.engine) as session:
        return write_pack(facts_of(session, blobs, as_of), folder, forms or ("csv", "xlsx", "json")).read_bytes()


# --- each against what happened ---------------------------------------------------------------------------------------


def test_pool_position_says_where_each_fen_of_the_pool_is(town, blobs):
    trade(town)  # 100 calls at 0.37 fen: 37 fen, of which the voucher pays 12
    (row,) = report(town, blobs, "pool-position")
    assert (row["authorised_fen"], row["unissued_fen"], row["issued_fen"]) == (1_000_000, 999_000, 1_000)
    assert (row["used_fen"], row["state"], row["conserved"]) == (12, "active", True)
    assert row["available_fen"] + row["reserved_fen"] + row["leased_fen"] == 988


def test_the_register_has_the_history_and_tells_the_state_of_its_instant(town, blobs):
    trade(town)
    before = instant()
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now + 60 * 86_400_000)
    (then,) = report(town, blobs, "voucher-register", before)
    (row,) = report(town, blobs, "voucher-register")
    assert (then["state"], then["returned_fen"]) == ("active", 0)
    assert (row["state"], row["returned_fen"], row["used_fen"]) == ("expired", 988, 12)
    assert (row["proposed_by"], row["approved_by"]) == (CHEN, LIN)
    assert [step.split()[1] for step in row["history"].split(" ; ")] == ["propose", "issue", "expire"]


def test_the_dossier_has_each_step_of_an_application_and_the_notice_its_public_ones(town, blobs):
    town.voucher(1_000)
    steps = [row["step"] for row in report(town, blobs, "application-dossier") if row["step"] != "checked"]
    assert steps == ["create", "submit", "check", "approve", "publish", "confirm"]
    assert [row["step"] for row in report(town, blobs, "public-notice")] == ["publish", "confirm"]
    batch = approved_after_trade(town, blobs)
    claims = [row for row in report(town, blobs, "public-notice") if row["of"] == "claim"]
    assert [(row["id"], row["step"], row["frozen_fen"]) for row in claims] == [
        (batch, "publish", 12),
        (batch, "approve", 12),
    ]


def test_the_dossier_lists_every_check_with_its_result_and_when_it_was_made_each_time(town, blobs):
    """A later check replaces the row's own results; the dossier keeps both."""
    made_at = iso(town.now)
    application = in_state(town, "check", checks=[{"code": "pool", "valid_days": 2}, {"code": "filing"}])
    before = instant()
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
        row = get_application(session, application, None)
        applications.check(session, row, actor=LIN, at_ms=town.now + 1)

    def checks(as_of: int | None = None) -> list[tuple[Any, ...]]:
        rows = report(town, blobs, "application-dossier", as_of)
        names = ("check", "passed", "reason", "by")
        return [tuple(row[name] for name in names) for row in rows if row["step"] == "checked"]

    first = [("pool", True, "", CHEN), ("filing", True, "", CHEN)]
    assert checks(before) == first
    assert checks() == [*first, ("pool", True, "", LIN), ("filing", False, "NO_FILED_MODEL", LIN)]
    dossier = report(town, blobs, "application-dossier")
    pool = next(row for row in dossier if row["check"] == "pool")
    assert (pool["application"], pool["at"]) == (application, made_at)
    assert pool["good_until"] == iso(end_of_day_ms(policy_date(town.now + 2 * DAY)))
    assert [row["failed_checks"] for row in dossier if row["step"] == "check"] == ["", "filing"]


def approved_after_trade(town: Town, blobs: Any) -> str:
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    return approved(town, blobs)


def test_cap_usage_is_what_the_counters_hold_of_enterprise_tranche_and_contract(town, blobs):
    node = trade(town)
    before = instant()
    claims.correct(town, node.acknowledged[0].usage_id)
    claims.correct(town, node.acknowledged[1].usage_id)
    town.voucher(200, programme="town")
    batch = claims.new_batch(town)
    claims.freeze(town, blobs, batch)
    claims.advance(town, batch, "submit")
    then = report(town, blobs, "cap-usage", before)
    assert [(row["kind"], row["spent_fen"]) for row in then] == [("enterprise", 12), ("tranche", 12), ("contract", 12)]
    as_the_counters_have_it(town, blobs)
    reject(town, batch)  # off the enterprise's and the tranche's cap, and stays on the contract's
    as_the_counters_have_it(town, blobs)
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now + 60 * 86_400_000)
    as_the_counters_have_it(town, blobs)
    assert report(town, blobs, "cap-usage", before) == then
    rows = {row["kind"]: row for row in then}
    assert (rows["enterprise"]["limit_fen"], rows["enterprise"]["room_fen"]) == (500_000, 499_000)
    assert (rows["tranche"]["period"], rows["tranche"]["room_fen"]) == ("one", 999_000)
    assert (rows["contract"]["contract"], rows["contract"]["issued_fen"]) == (town.rows(Subscription)[0].id, 1_000)


def as_the_counters_have_it(town: Town, blobs: Any) -> None:
    kept = {row.code: (row.limit_fen, row.used_fen, row.held_fen) for row in town.rows(CapCounter)}
    rows = report(town, blobs, "cap-usage")
    assert {row["cap"]: (row["limit_fen"], row["spent_fen"], row["held_fen"]) for row in rows} == kept


def test_the_contract_ledger_tells_the_terms_of_its_instant(town, blobs):
    trade(town)
    before = instant()
    with transaction(town.engine) as session:
        row = session.exec(select(Subscription)).one()
        subscriptions.change(session, row, {"contract_fen": 200_000}, actor="f")
    (then,) = report(town, blobs, "contract-ledger", before)
    (now,) = report(town, blobs, "contract-ledger")
    assert (then["contract_fen"], now["contract_fen"]) == (100_000, 200_000)
    assert (now["gross_fen"], now["subsidy_fen"], now["own_fen"]) == (37, 12, 25)


def test_usage_in_detail_and_summed_up(town, blobs):
    trade(town)
    detail = report(town, blobs, "usage-detail")
    assert {row["usage_id"] for row in detail} == {row.usage_id for row in town.rows(Usage)}
    (total,) = report(town, blobs, "usage-summary")
    assert (total["calls"], total["amount_micro"], total["kind"]) == (100, 37_000_000, "subsidised")
    (figures,) = report(town, blobs, "performance")
    assert (figures["calls"], figures["gross_fen"], figures["subsidy_fen"], figures["enterprises"]) == (100, 37, 12, 1)
    assert report(town, blobs, "usage-detail", programme="town") == detail


def test_the_filing_register_counts_subsidised_usage_inside_and_after_a_filing(town, blobs):
    trade(town)
    (row,) = report(town, blobs, "filing-register")
    assert (row["listing"], row["calls_inside"], row["calls_lapsed"]) == ("vendor/steel", 100, 0)


def test_the_filing_register_counts_a_derivative_s_usage_under_the_filing_of_its_base(town, blobs):
    with transaction(town.engine) as session:
        town.price(session, session.get_one(Listing, "lst_vendor/steel"), 100_000, kind="derivative")
        for name, relation in (("factory/tuned", "finetune"), ("factory/retrained", "retrained")):
            add_listing(session, name, "draft", visibility="private", parent_listing_id="lst_vendor/steel",
                        relation=relation)  # fmt: skip
    town.voucher(1_000)
    town.subscribe()
    node = town.node()
    node.call("factory/tuned", 100)
    node.stop()
    rows = {row["listing"]: row for row in report(town, blobs, "filing-register")}
    assert set(rows) == {"vendor/steel", "factory/tuned"}  # a retrained one stands under no filing
    assert (rows["vendor/steel"]["binding"], rows["vendor/steel"]["calls_inside"]) == ("own", 0)
    tuned = rows["factory/tuned"]
    assert (tuned["binding"], tuned["calls_inside"], tuned["amount_inside_micro"]) == ("inherited", 100, 10_000_000)


def test_the_filing_register_counts_usage_under_the_filing_of_its_time(town, blobs):
    trade(town)
    bind_anew(town)
    found = {row["number"][-1]: (row["binding"], row["calls_inside"]) for row in report(town, blobs, "filing-register")}
    assert found == {"1": ("past", 100), "2": ("own", 0)}
    assert {row["filing_id"] for row in report(town, blobs, "usage-detail")} == {"flg_1"}


def test_the_filing_register_counts_what_was_used_past_a_filing_s_end_whoever_paid(town, blobs):
    town.now = end_of_day_ms(policy_date(town.now)) - 10
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = policy_date(town.now).isoformat()
    town.voucher(1_000)
    town.subscribe()
    node = town.node()
    node.call(count=3)
    node.call(count=2, runs_ms=20)  # ended past it: ingest charges them to the enterprise
    node.stop()
    (row,) = report(town, blobs, "filing-register")
    assert (row["calls_inside"], row["amount_inside_micro"]) == (3, 3 * 370_000)
    assert (row["calls_lapsed"], row["amount_lapsed_micro"]) == (2, 2 * 370_000)
    assert (row["subsidised_lapsed"], row["subsidised_lapsed_micro"]) == (0, 0)
    with transaction(town.engine) as session:  # a filing that is found later to have ended before its use
        session.get_one(Filing, "flg_1").valid_until = policy_date(town.now - DAY).isoformat()
    (row,) = report(town, blobs, "filing-register")
    assert (row["calls_inside"], row["calls_lapsed"], row["subsidised_lapsed"]) == (0, 5, 3)


def test_the_cost_file_has_a_usage_row_and_a_negative_credit_row_of_each_charge(town, blobs):
    trade(town)
    rows = report(town, blobs, "cost-focus")
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Credit"}
    assert sum(row["x_BilledCostFen"] for row in rows if row["ChargeCategory"] == "Usage") == 37
    assert sum(row["x_BilledCostFen"] for row in rows if row["ChargeCategory"] == "Credit") == -12
    assert all(row["BilledCost"].startswith("-0.") for row in rows if row["ChargeCategory"] == "Credit")


def test_a_claim_batch_goes_from_usage_to_payment_and_tells_the_step_of_its_instant(town, blobs):
    trade(town)
    batch = approved(town, blobs)
    before = instant()
    pay(town, batch)
    then, rows = report(town, blobs, "claim-batch", before), report(town, blobs, "claim-batch")
    assert {row["usage_id"] for row in rows} == {row.usage_id for row in town.rows(Usage)}
    assert (sum(row["gross_fen"] for row in rows), sum(row["subsidy_fen"] for row in rows)) == (37, 12)
    assert {(row["step"], row["line_state"], row["payment"]) for row in then} == {("approve", "in_batch", "")}
    assert {(row["step"], row["line_state"], row["payment"]) for row in rows} == {
        ("confirm-payment", "accepted", "国库 1")
    }
    (position,) = report(town, blobs, "pool-position")
    assert (position["paid_fen"], position["batched_fen"], position["conserved"]) == (12, 0, True)


def test_corrections_name_both_persons_and_are_a_negative_row_of_the_cost_file(town, blobs):
    node = trade(town)
    before = instant()
    for record in node.acknowledged[:50]:
        claims.correct(town, record.usage_id)
    rows = report(town, blobs, "corrections")
    assert report(town, blobs, "corrections", before) == []
    assert {(row["state"], row["proposed_by"], row["decided_by"]) for row in rows} == {("posted", CHEN, LIN)}
    assert sum(row["gross_fen"] for row in rows) == 19
    assert {row["kind"] for row in rows} == {"correction"}
    costs = report(town, blobs, "cost-focus")
    assert sum(row["x_BilledCostFen"] for row in costs) == 18 - 6
    assert {row["ChargeClass"] for row in costs if row["x_BilledCostFen"] < 0 and row["ChargeCategory"] == "Usage"} == {
        "Correction"
    }


def test_a_check_that_two_persons_let_pass_is_told_beside_the_corrections_as_of_each_instant(town, blobs):
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
    application = in_state(town, "check", checks=[{"code": "pool"}, {"code": "filing"}])

    def decided(decision: str) -> str:
        with transaction(town.engine) as session:
            row = get_application(session, application, None)
            return propose_override(session, row, "filing", f"续期办理中 {decision}", member=CHEN).id

    before = instant()
    first, second = decided("decline"), decided("approve")
    proposed = instant()
    for override, decision in ((first, "decline"), (second, "approve")):
        with transaction(town.engine) as session:
            decide_override(session, get_override(session, override), decision, member=LIN)
    assert report(town, blobs, "corrections", before) == []
    then = report(town, blobs, "corrections", proposed)
    assert [(row["id"], row["state"], row["decided_by"], row["decided_at"]) for row in then] == [
        (each, "proposed", "", None) for each in sorted((first, second))
    ]
    rows = {row["id"]: row for row in report(town, blobs, "corrections")}
    assert {key: row["state"] for key, row in rows.items()} == {first: "declined", second: "approved"}
    row = rows[second]
    assert (row["kind"], row["application"], row["check"]) == ("override", application, "filing")
    assert (row["failed_reason"], row["reason"]) == ("NO_FILED_MODEL", "续期办理中 approve")
    assert (row["proposed_by"], row["decided_by"], row["enterprise"]) == (CHEN, LIN, "org_factory")
    assert row["usage_id"] == ""
    assert row["gross_fen"] is None
    assert report(town, blobs, "corrections", programme="town") == list(rows.values())
    other = town.programme(code="other")
    assert report(town, blobs, "corrections", programme=other) == []


def test_clawbacks_and_returns_to_the_pool(town, blobs):
    trade(town)
    batch = claims.paid(town, blobs)
    (line,) = claims.lines(town, batch)
    claims.claw(town, line.id, 12, ("confirm", LIN))
    before = instant()
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now + 60 * 86_400_000)
    (row,) = report(town, blobs, "clawback-register")
    assert (row["state"], row["amount_fen"], row["owed_fen"]) == ("confirmed", 12, 12)
    assert (row["opened_by"], row["confirmed_by"]) == (CHEN, LIN)
    assert report(town, blobs, "expiry-returns", before) == []
    assert sum(row["returned_fen"] for row in report(town, blobs, "expiry-returns")) == 988
    (position,) = report(town, blobs, "pool-position")
    assert (position["clawed_fen"], position["returned_fen"], position["conserved"]) == (12, 988, True)


def test_the_trial_balance_is_the_ledger_s_and_each_ledger_sums_to_zero(town, blobs):
    trade(town)
    found = report(town, blobs, "trial-balance")
    rows = {row["account"]: row for row in found}
    with reading(town.engine) as session:
        kept = {row["account"]: row["balance_fen"] for row in trial_balance(session)["items"]}
    assert {row["account"]: row["balance_fen"] for row in found if row["row"] == "account"} == kept
    assert rows["ΣQ"]["balanced"]
    assert rows["ΣM"]["balanced"]
    assert rows["Q.vouchers"]["balance_fen"] == kept["Q.avail"] + kept["Q.resv"] + kept["Q.lease"] == 988
    assert (rows["M.assets"]["balance_fen"], rows["M.liabilities"]["balance_fen"]) == (37, -37)
    assert sum(row["balance_fen"] for row in found if row["row"] == "class") == 0


def test_the_trial_balance_of_a_period_opens_with_what_the_days_before_closed_with(town, blobs, monkeypatch):
    real = posting.now_ms
    monkeypatch.setattr(posting, "now_ms", lambda: real() - DAY)
    town.voucher(1_000)  # posted yesterday
    monkeypatch.setattr(posting, "now_ms", real)
    town.subscribe(contract_fen=100_000)
    today = policy_date(now_ms()).isoformat()
    rows = {row["account"]: row for row in report(town, blobs, "trial-balance", from_day=today)}
    yesterday = end_of_day_ms(policy_date(now_ms() - DAY))
    before = {row["account"]: row["balance_fen"] for row in report(town, blobs, "trial-balance", yesterday)}
    whole = {row["account"]: row["balance_fen"] for row in report(town, blobs, "trial-balance")}
    assert {key: row["opening_fen"] for key, row in rows.items() if row["opening_fen"]} == {
        key: fen for key, fen in before.items() if fen
    }
    assert {key: row["balance_fen"] for key, row in rows.items()} == whole
    assert (rows["Q.avail"]["opening_fen"], rows["Q.avail"]["out_fen"], rows["Q.avail"]["balance_fen"]) == (
        1000,
        1000,
        0,
    )
    assert (rows["Q.resv"]["opening_fen"], rows["Q.resv"]["change_fen"]) == (0, 1_000)
    assert rows["ΣQ"]["balanced"]


def test_an_account_below_its_floor_or_a_lopsided_ledger_makes_the_trial_balance_say_so(town, blobs):
    trade(town)
    unguarded(town.engine, "UPDATE ledger_entry SET amount_fen = amount_fen - 2000 WHERE account LIKE 'Q.avail%'")
    rows = {row["account"]: row for row in report(town, blobs, "trial-balance")}
    assert (rows["Q.avail"]["balanced"], rows["ΣQ"]["balanced"], rows["ΣM"]["balanced"]) == (False, False, True)


def test_integrity_has_the_closed_days_the_segments_under_each_root_and_the_sealed_journals(town, blobs):
    trade(town)
    running = town.node("n2")
    running.call(count=5)
    running.flush()
    assert record_prefixes(town.engine, town.folder, now_ms()) == 1
    then = report(town, blobs, "integrity", instant())
    assert [row["day"] for row in then if row["kind"] == "segment"] == ["", ""]  # their day is not closed yet
    with transaction(town.engine) as session:
        (day, *_) = close_days(session, now_ms() + 2 * DAY)
        closed = (day.day, day.layout, day.transfers, day.segments, day.root)
        leaves = leaves_of(session, date.fromisoformat(day.day)).segments
    rows = report(town, blobs, "integrity", now_ms() + 3 * DAY)
    first = next(row for row in rows if row["kind"] == "day")
    assert tuple(first[name] for name in ("day", "layout", "transfers", "segments", "sha256")) == closed
    assert all(len(row["chain"]) == 64 for row in rows if row["kind"] == "day")
    segments = [row for row in rows if row["kind"] == "segment"]
    assert [(row["node"], row["epoch"], row["segment"], row["bytes"]) for row in segments] == leaves
    kept = {(row.node, row.epoch): row for row in town.rows(JournalSegment)}
    for row in segments:
        of = kept[row["node"], row["epoch"]]
        told = (row["first_seq"], row["last_seq"], row["records"], row["sha256"], row["at"], row["day"])
        assert told == (of.first_seq, of.last_seq, of.count, of.sha256, iso(of.recorded_at_ms), closed[0])
    sealed = next(row for row in segments if row["segment"] == "sealed")
    (journal,) = [row for row in rows if row["kind"] == "journal"]
    assert (journal["of"], journal["sha256"], journal["torn"]) == ("n1-1", sealed["sha256"], False)


def test_findings_are_told_with_what_was_made_of_them_by_then(town, blobs):
    trade(town)
    assert report(town, blobs, "findings") == []
    contract = town.rows(Subscription)[0]
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").controllers = ["p1"]
        session.get_one(Organisation, "org_vendor").controllers = ["p1"]
        town.list_model(session, "vendor/copper", filing_id="flg_1")
    with transaction(town.engine) as session:
        other = session.exec(select(Listing).where(Listing.name == "vendor/copper")).one()
        terms = {"contract_fen": 0, "on_voucher_end": "refuse", "monthly_cap_fen": None}
        second, _ = subscriptions.subscribe(session, "org_factory", other, **terms, actor="f", at_ms=town.now)
        for number, row in enumerate((contract.id, second.id)):
            session.add(
                Invoice(
                    id=f"inv_{number}", number="144", subscription_id=row, organisation_id="org_factory",
                    provider_id="org_vendor", amount_fen=37, issued_on="2026-01-01",
                )
            )  # fmt: skip
    assert report(town, blobs, "findings") == []  # nobody has looked yet
    assert recording.run(town.engine, now_ms())["new"] == 2
    before = instant()
    found = {row["code"]: row for row in report(town, blobs, "findings")}
    assert set(found) == {"RELATED_PARTY", "INVOICE_REUSED"}
    assert found["INVOICE_REUSED"]["contracts"].split() == sorted([contract.id, second.id])
    assert json.loads(found["INVOICE_REUSED"]["evidence"])["invoice_count"] == 2
    with transaction(town.engine) as session:
        row = dispositions.get_finding(session, found["RELATED_PARTY"]["finding"])
        dispositions.dispose(session, row, "under_review", "问供应商", member=CHEN, at_ms=now_ms())
    after = {row["code"]: row for row in report(town, blobs, "findings")}
    assert (after["RELATED_PARTY"]["state"], found["RELATED_PARTY"]["state"]) == ("under_review", "open")
    assert after["RELATED_PARTY"]["dispositions"].endswith(f"under_review {CHEN}: 问供应商")
    assert {row["code"]: row for row in report(town, blobs, "findings", before)} == found


# --- the same instant, the same bytes ---------------------------------------------------------------------------------


def test_the_same_instant_gives_the_same_bytes_whatever_happened_since(town, blobs, tmp_path):
    trade(town)
    batch = approved(town, blobs)
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
    application = in_state(town, "check", checks=[{"code": "filing"}], code="other")
    with transaction(town.engine) as session:
        row = get_application(session, application, None)
        override = propose_override(session, row, "filing", "续期办理中", member=CHEN).id
        session.get_one(Filing, "flg_1").valid_until = ""
    as_of = instant()
    first = pack(town, blobs, as_of, tmp_path / "a")
    with transaction(town.engine) as session:
        decide_override(session, get_override(session, override), "approve", member=LIN)
    town.voucher(5_000, programme=report(town, blobs, "pool-position")[0]["programme"])
    node = town.node("n2")
    node.call(count=50)
    node.stop()
    pay(town, batch)
    claims.correct(town, node.acknowledged[0].usage_id)
    claims.claw(town, claims.lines(town, batch)[0].id, 12, ("confirm", LIN))
    with transaction(town.engine) as session:
        row = session.exec(select(Subscription)).one()
        subscriptions.change(session, row, {"contract_fen": 300_000}, actor="f")
        closing.end_contract(session, row, actor="f", at_ms=town.now)
        closing.expire_vouchers(session, town.now + 60 * 86_400_000)
    again = pack(town, blobs, as_of, tmp_path / "b")
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(first).hexdigest()
    assert pack(town, blobs, now_ms(), tmp_path / "c") != first


def test_the_manifest_names_each_file_its_hash_and_what_cannot_be_told_of_the_past(town, blobs, tmp_path):
    trade(town)
    archive = zipfile.ZipFile(io.BytesIO(pack(town, blobs, instant(), tmp_path / "a")))
    manifest = json.loads(archive.read("manifest.json"))
    assert {each["file"] for each in manifest["files"]} == set(archive.namelist()) - {"manifest.json"}
    assert len(manifest["files"]) == 3 * len(REPORTS)
    for each in manifest["files"]:
        content = archive.read(each["file"])
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (each["sha256"], each["bytes"])
        assert each["reproducible"] == (not each["note_en"])
    assert manifest["code_version"]
    assert manifest["as_of"].endswith("+08:00")


# --- files that readers open ------------------------------------------------------------------------------------------


def test_no_cell_of_a_csv_or_a_workbook_is_run_as_a_formula(town, blobs, tmp_path):
    evil = '=HYPERLINK("http://x","y")'
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").name_zh = evil
    trade(town)
    with reading(town.engine) as session:
        facts = facts_of(session, blobs, now_ms())
        text, _ = write_report(find("voucher-register"), facts, "csv", tmp_path)
        book, _ = write_report(find("voucher-register"), facts, "xlsx", tmp_path)
    assert text.read_bytes().startswith(b"\xef\xbb\xbf")
    (row,) = csv.DictReader(io.StringIO(text.read_text("utf-8-sig")))
    assert row["name"] == "'" + evil
    titles, cells = load_workbook(book).active.iter_rows()
    named = {title.value: cell for title, cell in zip(titles, cells, strict=True)}
    assert (named["企业 enterprise"].value, named["企业 enterprise"].data_type) == (evil, "s")
    assert named["面值 face value (分 fen)"].value == 1_000
    assert named["面值 face value (元 CNY)"].value == 10


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_titled_in_both_languages_and_typed(name):
    found = REPORTS[name]
    assert found.zh
    assert found.en
    assert bool(found.note_zh) == bool(found.note_en)
    assert all(column.kind in UNITS and column.zh and column.en for column in found.columns)
    assert len({column.name for column in found.columns}) == len(found.columns)


@pytest.mark.parametrize(
    ("text", "code"),
    [("yesterday", "AS_OF_INVALID"), ("2026-10-01T12:00:00", "AS_OF_INVALID"), ("2999-01-01", "AS_OF_TOO_LATE")],
)
def test_an_instant_that_cannot_be_reported_is_refused(text, code):
    with pytest.raises(BadInput) as refused:
        instant_of(text, now_ms())
    assert refused.value.code == code


def test_a_day_is_reported_as_of_its_end_in_shanghai():
    assert instant_of("2026-10-01", now_ms()) == instant_of("2026-10-01T23:59:59.999+08:00", now_ms())


def test_a_report_or_a_period_that_is_not_there_is_refused(town, blobs):
    with pytest.raises(NotFound) as refused:
        find("pool")
    assert refused.value.code == "REPORT_NOT_FOUND"
    with reading(town.engine) as session, pytest.raises(BadInput) as wrong:
        facts_of(session, blobs, now_ms(), from_day="2999-01-01")
    assert wrong.value.code == "REPORT_PERIOD"


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(town, client, monkeypatch):
    """`operator(path)` with an operator's key; the clock of reports is past what has just happened."""
    with transaction(town.engine) as session:
        city = session.get_one(Organisation, "org_city")
        member = add_member(session, city, email="chen@x.example", name="chen", role="owner")
        scopes = scopes_of_kind("operator")
        _, key = create_key(session, city, name="k", scopes=scopes, actor="t", member_id=member.id, at_ms=now_ms())
    monkeypatch.setattr(api, "now_ms", lambda: now_ms() + 10_001)
    headers = {"Authorization": f"Bearer {key}"}

    def get(path: str, **query: str) -> Any:
        return client.get(f"/api/v1/reports{path}", params=query, headers=headers)

    get.page = lambda path, **query: client.get(path, params=query, headers=headers)
    return get


def test_an_operator_lists_and_downloads_and_nobody_else(town, client, operator):
    trade(town)
    assert operator("").json()["total"] == len(REPORTS)
    rows = operator("/pool-position", format="json", programme="town").json()
    assert (rows["rows"][0]["used_fen"], rows["total"]) == (12, 1)
    answer = operator("/usage-detail")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text.count("\r\n") == 101
    assert zipfile.ZipFile(io.BytesIO(operator("/pack").content)).testzip() is None
    assert operator("/nothing").json()["error"]["code"] == "REPORT_NOT_FOUND"
    assert operator("/pool-position", as_of="2999-01-01").status_code == 400
    assert operator("/pool-position", format="pdf").status_code == 400
    assert client.get("/api/v1/reports").status_code == 401


def test_city_hall_lists_the_reports_with_their_downloads(town, operator, client):
    page = operator.page("/city/reports", as_of="2026-10-01")
    assert page.status_code == 200
    for name in REPORTS:
        assert f"/api/v1/reports/{name}?format=xlsx&amp;as_of=2026-10-01" in page.text
    assert "/api/v1/reports/pack?as_of=2026-10-01" in page.text
    assert "什么都不影响" in page.text or "whatever happens" in page.text
    assert "2026-10-01" not in operator.page("/city/reports", as_of='"><script>').text
    assert "<script>" not in operator.page("/city/reports", as_of='"><script>').text
    assert client.get("/city/reports", follow_redirects=False).status_code != 200


def test_the_command_line_packs_what_the_market_would_and_names_its_hash(town, blobs, tmp_path):
    trade(town)
    target = tmp_path / "out.zip"
    as_of = "2026-10-01"
    done = CliRunner().invoke(
        command_line, ["reports", "pack", str(target), "--as-of", as_of, "--home", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert json.loads(done.output)["sha256"] == digest
    assert digest == hashlib.sha256(pack(town, blobs, instant_of(as_of, now_ms()), tmp_path / "a", "csv")).hexdigest()
    refused = CliRunner().invoke(
        command_line, ["reports", "pack", str(target), "--as-of", "x", "--home", str(tmp_path)]
    )
    assert refused.exit_code == 1
    assert "AS_OF_INVALID" in refused.output


def test_the_documentation_lists_every_report():
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    for name, found in REPORTS.items():
        assert f"| `{name}`{'' if found.reproducible else ' *'} |" in text
