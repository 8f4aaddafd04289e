"""What `algomart verify` asks of a pack beyond hashes and sums. A forger here changes content and seals all again:
each file's hash in the manifest, and the frozen document's, so that only the judgement can see it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

import serving.leases
from marketplace.catalogue.tables import Listing
from marketplace.cli import app
from marketplace.clock import end_of_day_ms, policy_date
from marketplace.db import transaction
from marketplace.integrity.judgements import Judgement
from marketplace.integrity.verify import Report, verify_pack
from marketplace.integrity.verify_journals import verify_journals
from marketplace.ledger import posting
from marketplace.usage import recovery
from marketplace.usage.tables import Usage
from marketplace.vouchers.tables import Programme, Subscription
from model_store.blobs import FolderBlobs
from tests.marketplace.stores import on_both_stores
from tests.marketplace.test_claims import (
    advance,
    batch_of,
    correct,
    enter_invoice,
    freeze,
    new_batch,
    pay,
    trade,
    voucher_with_evidence,
)
from tests.marketplace.test_integrity import close, pack_of_two_days, packed
from tests.marketplace.town import CHEN, DAY, LIN, Town

Change = Callable[[Any], None]


def pytest_generate_tests(metafunc):
    packs = ("pack", "backed", "across_midnight", "paid_pack", "correction_elsewhere_pack")
    on_both_stores(metafunc, only_sqlite=packs)


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    for module in (serving.leases, posting, recovery):
        monkeypatch.setattr(module, "now_ms", lambda: town.now)
    return town


@pytest.fixture
def pack(town, blobs, tmp_path) -> Path:
    """The voucher is to be used by 14 February."""
    return pack_of_two_days(town, blobs, tmp_path / "pack.zip")


def pack_of_day(town: Town, blobs: FolderBlobs, day: date, target: Path) -> Path:
    """Of what that day charged, frozen two days later."""
    town.now += 2 * DAY
    close(town)
    batch = batch_of(town, day.isoformat(), day.isoformat())
    freeze(town, blobs, batch)
    return packed(town, blobs, batch, target)


def forged(
    pack: Path,
    *,
    claim: Change | None = None,
    usage: Change | None = None,
    payment: Change | None = None,
    without: str = "",
    **facts: Any,
) -> Report:
    """The pack with these documents changed (of usage: its list of rows), `without` a file, its manifest saying these
    facts; and every hash that names them."""
    with zipfile.ZipFile(pack) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    told = json.loads(files.pop("manifest.json"))
    for name, change in (("claim.json", claim), ("payment.json", payment)):
        if change is not None:
            document = json.loads(files[name])
            change(document)
            files[name] = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    if usage is not None:
        files["usage.csv"] = _with_rows(files["usage.csv"], usage)
    files.pop(without, None)
    told |= facts
    told["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    told["claim_sha256"] = told["files"]["claim.json"]
    path = pack.with_name("forged.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("manifest.json", json.dumps(told).encode()), *files.items()):
            archive.writestr(name, content)
    return verify_pack(path)


def _with_rows(content: bytes, change: Change) -> bytes:
    rows = list(csv.DictReader(content.decode().splitlines()))
    change(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def moved(count: int, days: int) -> Change:
    """So many records used so many days later."""

    def change(rows: list[dict[str, str]]) -> None:
        for row in rows[:count]:
            row["occurred_at_ms"] = str(int(row["occurred_at_ms"]) + days * DAY)

    return change


def of_line(**facts: Any) -> Change:
    return lambda document: document["lines"][0].update(facts)


def made(report: Report) -> dict[str, bool]:
    return {each["what"]: each["made"] for each in report.judgements}


# --- when it was used and frozen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "change", "why"),
    [
        ("claim", lambda document: document.update(from_day="2027-01-16"), "charged on 2027-01-15, outside 2027-01-16"),
        ("claim", lambda document: document.update(to_day="2027-01-15"), "charged on 2027-01-16, outside 2027-01-01"),
        ("usage", moved(10, 5), "was used after the batch's last day"),
        ("usage", moved(150, -1), "none of its records was used at its instant"),
        ("usage", moved(1, 60), "was subsidised after the voucher's use-by day 2027-02-14"),
        ("claim", of_line(use_by="2027-01-15"), "was subsidised after the voucher's use-by day 2027-01-15"),
        ("claim", of_line(redeem_by="2027-01-17"), "frozen on 2027-01-18, to be redeemed by 2027-01-17"),
        ("claim", lambda document: document.update(total_fen=17), "its lines are 18 fen, it says 17"),
    ],
)
def test_what_was_not_used_or_frozen_in_time_is_named(pack, document, change, why):
    report = forged(pack, **{document: change})
    assert any(why in wrong for wrong in report.wrong), report.wrong


@pytest.fixture
def across_midnight(town, blobs, tmp_path) -> Path:
    """A call just after midnight is ingested first and waits, being less than a fen; the other node's of just before
    come after it and make a charge, which is the day before's. A batch up to that day."""
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    first, second = town.node("n1"), town.node("n2")
    last = policy_date(town.now)
    midnight = end_of_day_ms(last)
    town.now = midnight - 20_000
    second.call(count=100)
    town.now = midnight + 20_000
    first.call()
    first.flush()
    second.flush()
    first.stop()
    second.stop()
    return pack_of_day(town, blobs, last, tmp_path / "pack.zip")


def test_less_than_a_fen_that_waited_over_midnight_goes_with_the_charge_that_carries_it(across_midnight):
    report = verify_pack(across_midnight)
    assert report.wrong == []
    assert (report.facts["usage_records"], report.facts["usage_after_the_period"]) == (101, 1)
    assert forged(across_midnight, usage=moved(3, 1)).wrong


def test_usage_of_days_before_goes_with_the_charge_of_the_day_on_which_it_arrived(town, blobs, tmp_path):
    """A node that was away for a day: one charge, of the day of the last use in it."""
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=40)
    town.now += DAY
    day = policy_date(town.now).isoformat()
    node.call(count=60)
    node.flush()
    node.stop()
    batch = batch_of(town, day, day)
    freeze(town, blobs, batch)
    report = verify_pack(packed(town, blobs, batch, tmp_path / "pack.zip"))
    assert report.wrong == []
    assert (report.facts["usage_records"], report.facts["usage_before_the_period"]) == (100, 40)


# --- invoices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def correction_elsewhere_pack(town, blobs, tmp_path) -> Path:
    """Of a day's last second: 1 fen whose charge carries three days' waiting. A record that the day before charged was
    taken back meanwhile, so that more than a fen waited."""
    with transaction(town.engine) as session:
        town.price(session, session.get_one(Listing, "lst_vendor/steel"), 10_000)
    town.now += 1_000
    town.voucher(100_000, ratio={"num": 1, "den": 1})
    town.subscribe(contract_fen=100_000)
    first, second = town.node("n1"), town.node("n2")
    first.call(units=490)
    first.flush()
    (taken,) = first.call(units=230)
    first.flush()  # 7.20, 7 charged
    town.now += DAY
    last = policy_date(town.now)
    midnight_ms = end_of_day_ms(last) + 1
    town.now = midnight_ms - 20_000
    second.call(units=100)
    town.now = midnight_ms + 20_000
    first.call(units=60)
    first.flush()  # 7.80
    correct(town, taken.usage_id)  # 5.50, 5 charged
    first.call(units=49)
    first.flush()  # 5.99
    second.flush()  # 6.99, charged on the day before
    for node in (first, second):
        node.stop()
    town.check()
    return pack_of_day(town, blobs, last, tmp_path / "pack.zip")


def test_a_record_taken_back_of_another_lines_charge_lets_more_than_a_fen_wait(correction_elsewhere_pack):
    report = verify_pack(correction_elsewhere_pack)
    assert report.wrong == []
    assert report.facts["usage_after_the_period"] == 2
    forgotten = forged(correction_elsewhere_pack, claim=of_line(corrections=0))
    assert any("was used after the batch's last day" in each for each in forgotten.wrong)
    assert any("its usage comes to 2090000 micro-fen" in each for each in forgotten.wrong)


def test_a_document_that_knows_fewer_corrections_than_its_pack_marks_is_named(town, blobs, tmp_path):
    trade(town)
    correct(town, town.rows(Usage)[0].usage_id)
    town.now += DAY
    close(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    pack = packed(town, blobs, batch, tmp_path / "pack.zip")
    assert verify_pack(pack).wrong == []
    assert any(
        "1 records were corrected, the document knows 0" in each
        for each in forged(pack, claim=of_line(corrections=0)).wrong
    )


@pytest.fixture
def backed(town, blobs, tmp_path) -> Path:
    """Two contracts under a programme that asks for invoices: 37 fen of 50, and 18 of 18, backed by two invoices."""
    town.programme(evidence_schema=[{"code": "invoice", "title_zh": "发票", "title_en": "invoice"}])
    with transaction(town.engine) as session:
        programme = session.exec(select(Programme)).one().id
        town.list_model(session, "vendor/iron", filing_id="flg_1")
    voucher_with_evidence(town, programme)
    for model, calls in (("vendor/steel", 100), ("vendor/iron", 50)):
        town.subscribe(contract_fen=300, model=model)
        node = town.node(model.rpartition("/")[2])
        node.call(model, count=calls)
        node.stop()
    first, second = (row.id for row in town.rows(Subscription))
    enter_invoice(town, first, "A1", 50)
    enter_invoice(town, second, "A2", 10)
    enter_invoice(town, second, "A3", 8)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    return packed(town, blobs, batch, tmp_path / "pack.zip")


def test_a_pack_names_what_backs_its_lines_and_whether_it_must(backed):
    report = verify_pack(backed)
    assert (report.wrong, report.facts["lines"], report.facts["invoices"]) == ([], 2, 3)
    with zipfile.ZipFile(backed) as archive:
        lines = json.loads(archive.read("claim.json"))["lines"]
    assert [line["invoices_required"] for line in lines] == [True, True]


def of_invoice(number: str, /, **facts: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        for line in document["lines"]:
            for each in line["invoices"]:
                if each["number"] == number:
                    each.update(facts)

    return change


def _named_twice(document: dict[str, Any]) -> None:
    line = next(line for line in document["lines"] if len(line["invoices"]) == 1)
    line["invoices"] = [line["invoices"][0] | {"backs_fen": 10}, line["invoices"][0] | {"backs_fen": 27}]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (of_invoice("A2", backs_fen=9), "its invoices back 17 fen, its gross is 18"),
        (of_invoice("A1", backs_fen=38), "its invoices back 38 fen, its gross is 37"),
        (of_invoice("A1", amount_fen=36), "invoice A1 of 36 fen backs 37"),
        (of_invoice("A2", number="A1", amount_fen=50, backs_fen=18), "invoice A1 of 50 fen backs 55"),
        (of_invoice("A2", number="A1"), "invoice A1 stands with two amounts, days or numbers"),
        (of_invoice("A3", backs_fen=-1), "invoice A3 backs -1 fen of it"),
        (of_invoice("A3", backs_fen=8.0), "is no amount in fen"),
        (_named_twice, "names invoice A1 twice"),
        (lambda document: [line["invoices"].clear() for line in document["lines"]], "its invoices back 0 fen"),
        (lambda document: [line.pop("invoices") for line in document["lines"]], "does not say all that it must"),
    ],
)
def test_invoices_that_do_not_cover_a_line_or_back_more_than_they_say_are_named(backed, change, why):
    report = forged(backed, claim=change)
    assert any(why in wrong for wrong in report.wrong), report.wrong


def test_where_no_invoices_are_asked_for_some_may_back_a_part_and_none_more_than_the_line(town, blobs, tmp_path):
    trade(town)
    enter_invoice(town, town.rows(Subscription)[0].id, "A1", 30)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    path = packed(town, blobs, batch, tmp_path / "pack.zip")
    assert verify_pack(path).wrong == []
    report = forged(path, claim=of_invoice("A1", amount_fen=90, backs_fen=60))
    assert any("its invoices back 60 fen, more than its gross of 37" in wrong for wrong in report.wrong)


# --- the payment ------------------------------------------------------------------------------------------------------


@pytest.fixture
def paid_pack(town, blobs, tmp_path) -> Path:
    """12 fen, paid; the day of the payment is closed, and Q.paid of it leads to that day's root."""
    trade(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "review", "publish", "approve")
    town.now += DAY
    pay(town, batch)
    town.now += 2 * DAY
    close(town)
    return packed(town, blobs, batch, tmp_path / "pack.zip")


def test_a_pack_says_whether_its_batch_is_paid_and_its_frozen_document_stays_the_same(town, blobs, tmp_path):
    trade(town)
    batch = new_batch(town)
    frozen = freeze(town, blobs, batch).sha256
    advance(town, batch, "submit", "review", "publish", "approve")
    report = verify_pack(packed(town, blobs, batch, tmp_path / "unpaid.zip"))
    assert (report.wrong, report.facts["paid"], report.facts["state"]) == ([], False, "approved")
    pay(town, batch)
    report = verify_pack(packed(town, blobs, batch, tmp_path / "paid.zip"))
    assert (report.wrong, report.facts["paid"], report.facts["claim_sha256"]) == ([], True, frozen)
    assert (report.facts["payment_amount_fen"], report.facts["payment_reference"]) == (12, "国库 1")
    assert (report.facts["payment_entered_by"], report.facts["payment_confirmed_by"]) == (CHEN, LIN)
    assert report.facts["payment_in_a_closed_day"] is False
    advance(town, batch, "reconcile")
    report = verify_pack(packed(town, blobs, batch, tmp_path / "reconciled.zip"))
    assert (report.wrong, report.facts["paid"]) == ([], True)


@pytest.mark.parametrize(
    "mode", [{"settlement_mode": "deduct", "payee": "platform"}, {"payee": "provider", "settlement_mode": "deduct"}]
)
def test_the_payment_of_each_mode_holds(town, blobs, tmp_path, mode):
    trade(town, **mode)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "review", "publish", "approve")
    pay(town, batch)
    assert verify_pack(packed(town, blobs, batch, tmp_path / "paid.zip")).wrong == []


def with_posting(**facts: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["posting"] = json.dumps(json.loads(document["posting"]) | facts)

    return change


def paid_less(document: dict[str, Any]) -> None:
    """Another amount, in the posting too."""
    posting = json.loads(document["posting"])
    posting["entries"] = [[account, fen // 2] for account, fen in posting["entries"]]
    document |= {"amount_fen": 6, "posting": json.dumps(posting)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told.update(amount_fen=11), "11 fen were paid, the batch is 12"),
        (lambda told: told.update(amount_fen=11), "12 fen were posted as paid, not 11"),
        (paid_less, "6 fen were paid, the batch is 12"),
        (paid_less, "it is not what 2027-01-16 was closed with"),
        (lambda told: told.update(confirmed_by=CHEN), "'mem_chen' entered and confirmed it, alone"),
        (lambda told: told.update(entered_by=""), "does not say who entered and who confirmed it"),
        (lambda told: told.update(confirmed_at_ms=1), "confirmed before the batch was frozen"),
        (lambda told: told.update(paid_on="soon"), "cannot be read"),
        (lambda told: told.update(proof=None), "2027-01-16 is closed, and it has no proof"),
        (with_posting(kind="P9"), "another event was posted"),
        (with_posting(event="P10:clm_another"), "another event was posted"),
        (with_posting(entries=[["Q.paid[town@1]", 12]]), "its entries do not sum to zero"),
        (lambda told: told.update(paid=False), "says not paid, the batch is 'paid'"),
        (lambda told: told.update(paid=False), "has a payment, and says that there is none"),
    ],
)
def test_a_payment_of_another_amount_by_one_person_or_otherwise_posted_is_named(paid_pack, change, why):
    report = forged(paid_pack, payment=change)
    assert any(why in wrong for wrong in report.wrong), report.wrong


def test_the_payment_leads_to_the_root_of_its_day(paid_pack):
    report = verify_pack(paid_pack)
    assert (report.wrong, report.facts["payment_in_a_closed_day"]) == ([], True)


def test_an_unpaid_batch_is_not_said_to_be_paid_nor_a_pack_to_be_of_a_format_that_it_is_not(pack):
    assert any("says not paid, the batch is 'paid'" in wrong for wrong in forged(pack, state="paid").wrong)
    assert any("payment.json" in wrong for wrong in forged(pack, without="payment.json").wrong)
    assert any("payment.json" in wrong for wrong in forged(pack, format="algomart-pack/3").wrong)


def test_a_pack_of_before_payments_were_in_it_holds_and_is_said_to_have_none(paid_pack):
    report = forged(paid_pack, without="payment.json", format="algomart-pack/3")
    assert report.wrong == []
    assert {what for what, was in made(report).items() if not was} == {Judgement.PAYMENT, Judgement.JOURNALS}
    assert "paid" not in report.facts


# --- what is told of it -----------------------------------------------------------------------------------------------


def test_all_that_a_pack_of_today_has_is_judged_and_journals_where_they_are_given(pack, town):
    report = verify_pack(pack)
    assert {what for what, was in made(report).items() if not was} == {Judgement.JOURNALS}
    verify_journals(pack, town.folder, report)
    assert all(made(report).values())
    assert report.wrong == []


def older(document: dict[str, Any]) -> None:
    """A claim that was frozen before lines said this."""
    document["format"] = "algomart-claim/1"
    for line in document["lines"]:
        del line["redeem_by"], line["invoices_required"]


def test_what_an_older_claim_does_not_say_is_not_judged_and_told(pack):
    report = forged(pack, claim=older)
    assert report.wrong == []
    missing = {what for what, was in made(report).items() if not was}
    assert missing == {Judgement.REDEEM_BY, Judgement.INVOICE_COVER, Judgement.JOURNALS}


def test_the_command_says_what_was_judged_and_what_was_not(pack):
    forged(pack, claim=older)
    done = CliRunner().invoke(app, ["verify", str(pack.with_name("forged.zip"))])
    assert done.exit_code == 0, done.output
    assert "该批次尚未支付 · this batch is not paid" in done.output
    assert "已判定 judged: 扣费与用量在申报期内 · charges and usage lie within the batch's period" in done.output
    assert "未判定 not judged: 冻结不晚于券的兑付截止日" in done.output
    assert "the frozen document is older and does not say" in done.output
    done = CliRunner().invoke(app, ["verify", str(pack), "--json"])
    told = {each["what"]: each for each in json.loads(done.output)["judgements"]}
    assert (told["PERIOD"]["made"], told["JOURNALS"]["made"]) == (True, False)
    assert told["JOURNALS"]["why_en"].startswith("no folder")
