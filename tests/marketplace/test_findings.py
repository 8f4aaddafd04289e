"""Findings on a town's real ledger and journal: found, found again, decided by persons, and what they hold back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

import serving.leases
from marketplace.claims import corrections
from marketplace.claims.tables import Invoice
from marketplace.clock import now_ms
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.findings import dispositions, recording
from marketplace.findings.scanning import find_all
from marketplace.findings.tables import Finding, FindingContract, FindingDisposition, FindingSighting
from marketplace.housekeeping import Housekeeping
from marketplace.organisations.tables import AuditEvent, Notice, Organisation
from marketplace.vouchers.signals import Code
from marketplace.vouchers.tables import Subscription
from model_store.errors import BadInput, Conflict, Forbidden, NotFound
from tests.marketplace import test_claims as claims
from tests.marketplace.test_claims_desk import Desk, desk, made, paid  # noqa: F401
from tests.marketplace.town import CHEN, DAY, LIN, Node, Town
from tests.postgres import postgres_server

SIGNALS = {"interval_calls": 10, "identical_calls": 20, "burst_fen": 1, "burst_valid_days": 1, "just_over_idle_days": 1}


def trade(town: Town, calls: int = 20, *, every_ms: int = 1_000, digest: str = "", **changes: Any) -> Node:
    """A voucher of 1,000 fen, and calls so far apart under one contract; the node has stopped."""
    town.voucher(1_000, **{"signals": SIGNALS} | changes)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    for _ in range(calls):
        node.call(digest=digest)
        town.now += every_ms
    node.stop()
    return node


def search(town: Town) -> dict[str, int]:
    with reading(town.engine) as session:
        found = find_all(session, town.now)
    with transaction(town.engine) as session:
        return recording.record(session, found, town.now, actor="system")


def found(town: Town) -> dict[str, Finding]:
    return {row.code: row for row in town.rows(Finding)}


def decide(town: Town, finding: str, *states: str, member: str = CHEN) -> None:
    for state in states:
        with transaction(town.engine) as session:
            row = dispositions.get_finding(session, finding)
            dispositions.dispose(session, row, state, f"为了{state}", member=member, at_ms=town.now)


# --- what a run finds -------------------------------------------------------------------------------------------------


def test_calls_of_one_key_at_one_beat_are_found_with_records_to_look_at(town):
    node = trade(town, 20)
    assert search(town) == {"found": 1, "new": 1, "changed": 0}
    row = found(town)[Code.CONSTANT_INTERVALS]
    assert row.organisation_id == "org_factory"
    assert row.evidence["days"] == [{"day": "2027-01-15", "calls": 20, "mean_gap_ms": 1_000, "cv_bp": 0}]
    assert row.evidence["usage_ids"] == sorted(record.usage_id for record in node.acknowledged)[:20]
    assert row.evidence["charges"]
    assert Code.BURST_BEFORE_USE_BY not in found(town)  # its last days have not begun


def test_an_irregular_hand_is_no_machine_and_other_requests_are_others(town):
    town.voucher(1_000, signals=SIGNALS)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    for number in range(20):
        node.call(digest=f"d{number}")
        town.now += 1_000 + 400 * (number % 5)
    node.stop()
    search(town)
    assert set(found(town)) == set()


def test_the_same_request_again_and_again_is_found_without_what_was_taken_back(town):
    node = trade(town, 21, digest="same", every_ms=0)
    search(town)
    assert found(town)[Code.IDENTICAL_REQUESTS].evidence["usage_count"] == 21
    usage = node.acknowledged[0].usage_id
    with transaction(town.engine) as session:
        row = corrections.propose(session, usage, "重复", member=CHEN)
        corrections.decide(session, row, "post", member=LIN, at_ms=town.now)
    town.now += 1
    search(town)
    row = found(town)[Code.IDENTICAL_REQUESTS]
    assert row.evidence["usage_count"] == 20
    assert row.changed_ms == town.now


def test_each_repeated_request_shows_its_own_first_records(town):
    town.voucher(1_000, signals=SIGNALS)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    for _ in range(25):
        for digest in ("one", "two"):
            node.call(digest=digest)
    node.stop()
    search(town)
    shown = {
        row.evidence["request_digest"]: row.evidence["usage_ids"]
        for row in town.rows(Finding)
        if row.code == Code.IDENTICAL_REQUESTS
    }
    ids = {"one": sorted(each.usage_id for each in node.acknowledged if each.request_digest == "one")}
    ids["two"] = sorted({each.usage_id for each in node.acknowledged} - set(ids["one"]))
    assert shown == {digest: each[:20] for digest, each in ids.items()}


def test_a_voucher_that_is_spent_in_its_last_days_is_found(town):
    town.voucher(1_000, signals=SIGNALS, validity={"days": 20})
    town.pass_days(14)  # the last seven of its days begin
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=100)
    node.stop()
    search(town)
    row = found(town)[Code.BURST_BEFORE_USE_BY]
    assert (row.amount_fen, row.evidence["paid_fen"], row.evidence["late_from"]) == (12, 12, "2027-01-29")
    assert row.evidence["charge_count"] == len(row.evidence["charges"]) >= 1


def test_spending_that_stopped_just_over_the_least_amount_is_found(town):
    trade(town, 100, every_ms=0, min_spend_fen=36)  # 37 fen were spent
    search(town)
    assert Code.SPEND_JUST_OVER not in found(town)  # it may go on
    town.pass_days(1)
    search(town)
    assert found(town)[Code.SPEND_JUST_OVER].amount_fen == 37


def relate(town: Town) -> None:
    with transaction(town.engine) as session:
        for name in ("org_factory", "org_vendor"):
            row = session.get_one(Organisation, name)
            row.shareholders = [{"name": "甲", "code": "p1", "share_bp": 3_000}]
            session.add(row)


def test_those_who_became_related_are_found_and_stay_found_when_they_deny_it(town):
    trade(town, 1)
    relate(town)
    search(town)
    (row,) = [row for row in town.rows(Finding) if row.code == Code.RELATED_PARTY]
    assert [step["share_bp"] for step in row.evidence["links"]] == [3_000, 3_000]
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").shareholders = []
    town.pass_days(1)
    assert search(town)["found"] == 0
    assert found(town)[Code.RELATED_PARTY].state == "open"
    assert found(town)[Code.RELATED_PARTY].last_seen_ms == town.now - DAY


# --- the same finding again -------------------------------------------------------------------------------------------


def test_what_is_found_again_is_the_same_row_seen_once_more_a_day(town):
    trade(town, 20, digest="same")
    search(town)
    first = found(town)
    town.now += 60_000
    assert search(town) == {"found": len(first), "new": 0, "changed": 0}
    assert len(town.rows(FindingSighting)) == len(first)  # the same day, the same evidence
    town.pass_days(1)
    search(town)
    again = found(town)
    assert {code: row.id for code, row in again.items()} == {code: row.id for code, row in first.items()}
    assert {row.last_seen_ms for row in again.values()} == {town.now}
    assert {row.first_seen_ms for row in again.values()} == {row.first_seen_ms for row in first.values()}
    assert [bool(row.evidence) for row in town.rows(FindingSighting)] == [True] * len(first) + [False] * len(first)


def test_operators_are_told_of_new_findings_only(town):
    trade(town, 20)
    search(town)
    search(town)
    told = [row for row in town.rows(Notice) if row.code == "FINDINGS_NEW"]
    assert [row.link for row in told] == ["/city/findings"]
    assert len([row for row in town.rows(AuditEvent) if row.action == "finding.run"]) == 2


def test_a_market_looks_once_a_day(town, market):
    rounds = Housekeeping(market)
    for _ in range(2):
        rounds._findings()
    assert len([row for row in town.rows(AuditEvent) if row.action == "finding.run"]) == 1
    with reading(town.engine) as session:
        assert not recording.is_due(session, now_ms())
        assert recording.is_due(session, now_ms() + DAY)


# --- dispositions -----------------------------------------------------------------------------------------------------


def test_a_finding_goes_from_open_to_its_end_by_persons_who_say_why(town):
    trade(town, 20)
    search(town)
    row = found(town)[Code.CONSTANT_INTERVALS]
    with pytest.raises(Conflict, match="FINDING_STATE"):
        decide(town, row.id, "dismissed")  # nobody has looked at it
    decide(town, row.id, "under_review", "dismissed", "under_review", "confirmed")
    history = town.rows(FindingDisposition)
    assert [each.state for each in history] == ["under_review", "dismissed", "under_review", "confirmed"]
    assert {each.member_id for each in history} == {CHEN}
    assert town.get(Finding, row.id).state == "confirmed"


def test_a_reason_and_a_person_are_asked_for_and_an_unknown_finding_is_none(town):
    trade(town, 20)
    search(town)
    key = found(town)[Code.CONSTANT_INTERVALS].id
    for reason, member, error in (("  ", CHEN, BadInput), ("为何", "", Forbidden)):
        with transaction(town.engine) as session:
            row = dispositions.get_finding(session, key)
            with pytest.raises(error):
                dispositions.dispose(session, row, "under_review", reason, member=member, at_ms=town.now)
            session.expunge(row)
    assert town.get(Finding, key).state == "open"
    with pytest.raises(NotFound, match="FINDING_NOT_FOUND"):
        decide(town, "fnd_none", "under_review")


@pytest.mark.parametrize("table", ["finding_sighting", "finding_disposition"])
@pytest.mark.parametrize("change", ["UPDATE {} SET at_ms = 0", "DELETE FROM {}"])
def test_the_histories_are_append_only_by_the_database(town, table, change):
    trade(town, 20)
    search(town)
    decide(town, found(town)[Code.CONSTANT_INTERVALS].id, "under_review")
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), transaction(town.engine) as session:
        session.connection().exec_driver_sql(change.format(table))


def test_a_dismissed_finding_stays_dismissed_and_says_that_its_evidence_has_changed(town):
    node = trade(town, 20, digest="same", every_ms=0)
    search(town)
    key = found(town)[Code.IDENTICAL_REQUESTS].id
    decide(town, key, "under_review", "dismissed")
    node = town.node("n2")
    node.call(count=5, digest="same")
    node.stop()
    town.now += 1
    assert search(town)["changed"] >= 1
    row = town.get(Finding, key)
    assert (row.state, row.evidence["usage_count"]) == ("dismissed", 25)
    assert row.changed_ms > town.rows(FindingDisposition)[-1].at_ms


# --- what it holds back -----------------------------------------------------------------------------------------------


def reasons(town: Town) -> list[str]:
    batch = claims.new_batch(town)
    return [candidate.reason for candidate in claims.candidates(town, batch)]


@pytest.mark.parametrize("held", [True, False])
def test_a_finding_keeps_its_line_out_of_a_freeze_where_the_programme_says_so(town, blobs, held):
    codes = [Code.IDENTICAL_REQUESTS] if held else [Code.RELATED_PARTY]
    trade(town, 100, digest="same", every_ms=0, signals=SIGNALS | {"hold_claims_on": codes})
    assert reasons(town) == [""]
    search(town)
    assert reasons(town) == (["FINDING_OPEN"] if held else [""])
    if not held:
        return
    with pytest.raises(Conflict, match="CLAIM_EMPTY"):
        claims.freeze(town, blobs, claims.new_batch(town))
    key = found(town)[Code.IDENTICAL_REQUESTS].id
    decide(town, key, "under_review")
    assert reasons(town) == ["FINDING_OPEN"]
    decide(town, key, "confirmed")
    assert reasons(town) == ["FINDING_OPEN"]  # what was found true is not paid out either
    decide(town, key, "under_review", "dismissed")
    assert reasons(town) == [""]
    assert claims.freeze(town, blobs, claims.new_batch(town)).total_fen == 12


def test_an_invoice_that_two_contracts_share_holds_both_programmes_lines(town):
    trade(town, 100, every_ms=0, signals=SIGNALS | {"hold_claims_on": [Code.INVOICE_REUSED]})
    contract = town.rows(Subscription)[0]
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/copper", filing_id="flg_1")
    other = town.subscribe(contract_fen=0, model="vendor/copper")
    with transaction(town.engine) as session:
        for number, subscription in enumerate((contract.id, other)):
            session.add(
                Invoice(
                    id=f"inv_{number}", number="144", subscription_id=subscription, amount_fen=37,
                    organisation_id="org_factory", provider_id="org_vendor", issued_on="2027-01-01",
                )
            )  # fmt: skip
    search(town)
    assert sorted(row.subscription_id for row in town.rows(FindingContract)) == sorted([contract.id, other])
    assert reasons(town) == ["FINDING_OPEN"]


# --- on PostgreSQL too ------------------------------------------------------------------------------------------------


def test_postgresql_finds_the_same(town, tmp_path, monkeypatch):
    trade(town, 30, digest="same")
    relate(town)
    with reading(town.engine) as session:
        expected = find_all(session, town.now)
    with contextmanager(postgres_server)() as url:
        engine = open_database(url)
        create_tables(engine)
        other = Town(engine, tmp_path / "journal-pg")
        monkeypatch.setattr(serving.leases, "now_ms", lambda: other.now)
        trade(other, 30, digest="same")
        relate(other)
        for _ in range(2):
            search(other)
        seen = {code: (row.amount_fen, row.text_zh) for code, row in found(other).items()}
        engine.dispose()
    assert seen == {str(each.code): (each.amount_fen, each.zh) for each in expected}
    assert len(seen) >= 3
