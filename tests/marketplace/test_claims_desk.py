"""City hall's desk for claims: two operators walk a batch to its payment by its buttons alone, and back."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

import serving.leases
from marketplace.access import SESSION_COOKIE
from marketplace.catalogue.tables import Filing
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.clock import now_ms, policy_date
from marketplace.db import transaction
from marketplace.integrity.days import close_days
from marketplace.organisations.members import open_session
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.tables import Subscription
from tests.marketplace.town import DAY, Town

PEOPLE = {"chen": ("org_city", "陈经办"), "lin": ("org_city", "林复核"), "wang": ("org_factory", "王师傅")}


@pytest.fixture
def town(market, tmp_path, monkeypatch) -> Town:
    town = Town(market.engine, tmp_path / "journal", now=now_ms())
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    market.catalogue_changed()
    return town


@pytest.fixture
def desk(town: Town, client: TestClient) -> Desk:
    return operators_desk(town, client)


def operators_desk(town: Town, client: TestClient) -> Desk:
    """Everybody of `PEOPLE`, logged in."""
    sessions = {}
    with transaction(town.engine) as session:
        for who, (organisation_id, name) in PEOPLE.items():
            organisation = session.get_one(Organisation, organisation_id)
            member = add_member(session, organisation, email=f"{who}@x.example", name=name, role="owner")
            member.status = "active"
            sessions[who] = open_session(session, member, now_ms())
    return Desk(client, sessions)


class Desk:
    """The pages as each person sees them, and their buttons."""

    def __init__(self, client: TestClient, sessions: dict[str, str]) -> None:
        self._client, self._sessions = client, sessions

    def see(self, who: str, path: str, language: str = "zh", status: int = 200) -> str:
        answer = self._as(who, lambda: self._client.get(f"{path}{'&' if '?' in path else '?'}lang={language}"))
        assert answer.status_code == status, answer.text
        return html.unescape(answer.text)

    def press(self, who: str, action: str, status: int = 303, **fields: Any) -> Response:
        """Fill in a form and confirm what is asked."""
        data = {name: str(value) for name, value in fields.items()} | {"confirmed": "1"}
        answer = self._as(who, lambda: self._client.post(f"/do/{action}", data=data, follow_redirects=False))
        assert answer.status_code == status, html.unescape(answer.text)
        return answer

    def _as(self, who: str, ask: Callable[[], Response]) -> Response:
        self._client.cookies.clear()
        self._client.cookies.set(SESSION_COOKIE, self._sessions[who])
        return ask()


def trade(town: Town, calls: int = 100) -> list[str]:
    """A voucher of 10 yuan, and calls of 0.37 fen of which it pays a third: 37 and 12 fen. Answers the usage ids."""
    town.voucher(1_000)
    town.subscribe(contract_fen=100_000)
    node = town.node()
    node.call(count=calls)
    node.stop()
    return [record.usage_id for record in node.acknowledged]


def made(desk: Desk, town: Town) -> str:
    today = policy_date(town.now).isoformat()
    answer = desk.press("chen", "create-claim", programme="town", from_day=today, to_day=today)
    where = answer.headers["location"]
    assert where.startswith("/city/claims/clm_")
    return where


def buttons(text: str) -> set[str]:
    return set(re.findall(r'action="/do/([\w-]+)"', text))


def paid(desk: Desk, town: Town) -> str:
    where = made(desk, town)
    claim = where.rpartition("/")[2]
    for step in ("freeze", "submit", "review", "publish"):
        desk.press("chen", f"{step}-claim", claim_id=claim)
    desk.press("lin", "approve-claim", claim_id=claim)
    desk.press("chen", "pay-claim", claim_id=claim, reference="国库 1", paid_on="2027-02-01", amount_yuan="0.12")
    desk.press("lin", "confirm-payment", claim_id=claim)
    return where


def test_two_operators_walk_a_batch_to_its_payment_and_each_page_says_whose_turn_it_is(town: Town, desk: Desk) -> None:
    trade(town)
    where = made(desk, town)
    claim = where.rpartition("/")[2]
    text = desk.see("chen", where)
    assert "若现在冻结" in text
    assert "✓ 列入" in text
    assert "¥0.12" in text
    assert {"freeze-claim", "discard-claim"} <= buttons(text)
    desk.press("chen", "freeze-claim", claim_id=claim)
    for step in ("submit", "review", "publish"):
        assert f"{step}-claim" in buttons(desk.see("chen", where))
        desk.press("chen", f"{step}-claim", claim_id=claim)

    assert re.search(r"公示中</span>.*?<td>批准", desk.see("chen", "/city/claims"), re.S)  # the next of it
    text = desk.see("chen", where)
    assert "approve-claim" not in buttons(text)
    assert "批次由您冻结, 须由另一人批准" in text
    desk.press("chen", "approve-claim", 403, claim_id=claim)
    assert "approve-claim" in buttons(desk.see("lin", where))
    desk.press("lin", "approve-claim", claim_id=claim)

    payment = {"claim_id": claim, "reference": "国库 2027-1", "paid_on": "2027-02-01"}
    desk.press("chen", "pay-claim", 409, amount_yuan="0.13", **payment)
    desk.press("chen", "pay-claim", amount_yuan="0.12", **payment)
    text = desk.see("chen", where, "en")
    assert "confirm-payment" not in buttons(text)
    assert "You entered this payment: another person has to confirm it" in text
    desk.press("lin", "confirm-payment", claim_id=claim)
    desk.press("lin", "reconcile-claim", claim_id=claim)

    text = desk.see("lin", where)
    assert "已对账" in text
    assert "国库 2027-1" in text
    assert f"/api/v1/claims/{claim}/pack" in text
    for person in ("陈经办", "林复核"):
        assert person in text
    assert "已对账" in desk.see("chen", "/city/claims")
    pools = desk.see("chen", "/city")
    row = re.search(r"其中: 未申报.*?</table>", pools, re.S)
    assert row
    assert re.findall(r"¥[\d.]+", row.group())[-5:] == ["¥0.12", "¥0.00", "¥0.00", "¥0.12", "¥0.00"]


def test_nothing_is_done_before_it_is_asked_and_only_operators_come_in(town: Town, desk: Desk) -> None:
    trade(town)
    where = made(desk, town)
    claim = where.rpartition("/")[2]
    answer = desk._as("chen", lambda: desk._client.post("/do/freeze-claim", data={"claim_id": claim}))
    assert "冻结该批次?" in answer.text
    assert town.get(ClaimBatch, claim).state == "assembling"
    for path in ("/city/claims", where, "/city/corrections", "/city/clawbacks", "/city/days"):
        desk.see("wang", path, status=403)
    desk.press("wang", "freeze-claim", 403, claim_id=claim)
    desk.see("chen", "/city/claims/clm_none", status=404)
    desk.see("chen", f"{where}/cln_none", status=404)


def test_what_is_left_out_is_said_with_its_reason_in_both_languages(town: Town, desk: Desk) -> None:
    trade(town)
    with transaction(town.engine) as session:
        for each in ("org_factory", "org_vendor"):
            row = session.get_one(Organisation, each)
            row.controllers = ["person_1"]
            session.add(row)
    where = made(desk, town)
    assert "不列入: 企业与供应商为关联方" in desk.see("chen", where)
    assert "left out: enterprise and provider are related" in desk.see("chen", where, "en")


def test_a_line_is_returned_with_a_reason_which_the_page_keeps(town: Town, desk: Desk) -> None:
    trade(town)
    where = made(desk, town)
    claim = where.rpartition("/")[2]
    for step in ("freeze", "submit"):
        desk.press("chen", f"{step}-claim", claim_id=claim)
    line = town.rows(ClaimLine)[0].id
    assert {"return-line", "return-claim"} <= buttons(desk.see("chen", where))
    desk.press("chen", "return-line", 400, claim_id=claim, line_id=line)
    desk.press("chen", "return-line", claim_id=claim, line_id=line, note="发票抬头不符")
    text = desk.see("chen", where)
    assert "已退回" in text
    assert "发票抬头不符" in text
    assert "该行已退回" in desk.see("chen", f"{where}/{line}")


def test_invoices_of_the_contracts_are_entered_and_seen_on_the_batch(town: Town, desk: Desk) -> None:
    trade(town)
    where = made(desk, town)
    contract = town.rows(Subscription)[0].id
    desk.press(
        "chen", "enter-invoice", claim_id=where.rpartition("/")[2], subscription_id=contract, number="88001234",
        amount_yuan="0.37", issued_on="2027-01-20",
    )  # fmt: skip
    text = desk.see("chen", where)
    assert "88001234" in text
    assert "¥0.37" in text


def test_a_correction_is_proposed_by_one_and_posted_by_another(town: Town, desk: Desk) -> None:
    usage = trade(town)[0]
    desk.press("chen", "propose-correction", 400, usage_id=usage)
    desk.press("chen", "propose-correction", usage_id=usage, reason="重复调用")
    text = desk.see("chen", "/city/corrections")
    assert "须由另一人入账" in text
    assert "重复调用" in text
    assert "陈经办" in text
    assert "post-correction" not in text
    correction = re.findall(r'name="correction_id" value="(\w+)"', text)[0]
    assert "post-correction" in desk.see("lin", "/city/corrections")
    desk.press("lin", "post-correction", correction_id=correction)
    assert "corrected" in desk.see("lin", "/city/corrections", "en")


def test_a_clawback_is_opened_by_one_confirmed_by_another_and_recovered(town: Town, desk: Desk) -> None:
    trade(town)
    where = paid(desk, town)
    line = town.rows(ClaimLine)[0].id
    assert f"/city/clawbacks?line_id={line}" in desk.see("chen", where)
    desk.press("chen", "open-clawback", line_id=line, amount_yuan="0.12", reason="重复申报")
    text = desk.see("chen", "/city/clawbacks")
    assert "须由另一人确认" in text
    assert "confirm-clawback" not in text
    clawback = re.findall(r'name="clawback_id" value="(\w+)"', text)[0]
    for who, step in (("lin", "confirm"), ("chen", "demand"), ("chen", "recover")):
        assert f"{step}-clawback" in desk.see(who, "/city/clawbacks")
        desk.press(who, f"{step}-clawback", clawback_id=clawback)
    assert "已收回" in desk.see("chen", "/city/clawbacks")
    assert "重复申报" in desk.see("chen", f"{where}/{line}")


def test_a_line_is_traced_down_to_its_usage_price_filing_contract_and_payment(town: Town, desk: Desk) -> None:
    usage = trade(town)[0]
    where = paid(desk, town)
    line = town.rows(ClaimLine)[0].id
    text = desk.see("chen", f"{where}/{line}")
    for fact in (usage, "0.37", "✓ 演示-不是备案号-1", town.rows(Subscription)[0].id, "国库 1", "1/3", "扣费"):
        assert fact in text, fact


def test_days_are_listed_with_their_chain_and_computed_again_on_request(town: Town, desk: Desk) -> None:
    trade(town)
    with transaction(town.engine) as session:
        rows = [row.model_dump() for row in close_days(session, town.now + 2 * DAY)]
    text = desk.see("chen", "/city/days")
    assert rows
    assert rows[-1]["chain"] in text
    assert all(row["day"] in text for row in rows)
    assert "各日与链均相符" in desk.see("chen", "/city/days?check=true")


def test_a_call_is_traced_up_to_its_batch_and_payment_in_words(town: Town, desk: Desk) -> None:
    usage = trade(town)[0]
    before = desk.see("wang", f"/console/usage/{usage}")
    assert "尚未列入申报批次" in before
    where = paid(desk, town)
    line = town.rows(ClaimLine)[0].id
    text = desk.see("chen", f"/console/usage/{usage}")
    assert f'href="{where}"' in text
    assert f'href="{where}/{line}"' in text
    assert "整批" in text
    assert "整批" not in desk.see("wang", f"/console/usage/{usage}")  # others' money is in it
    for language, facts in {
        "zh": ("¥0.0037", "✓ 有效", "应收企业", "国库 1", "已付", "先付后补", "生效于", "¥1,000.00"),
        "en": ("¥0.0037", "✓ valid", "the enterprise owes", "国库 1", "paid", "reimbursed", "In force since"),
    }.items():
        text = desk.see("wang", f"/console/usage/{usage}", language)
        assert [fact for fact in facts if fact not in text] == []
        assert "/city/" not in text  # an enterprise's way ends at the batch's days and the payment
        shown = re.sub(r"<[^>]*>", " ", text)
        assert not re.search(r"_ms|_fen|_micro|\{'|None|_id\b", shown)


def test_a_filing_that_was_over_on_the_day_of_use_is_said(town: Town, desk: Desk) -> None:
    usage = trade(town)[0]
    with transaction(town.engine) as session:
        filing = session.get_one(Filing, "flg_1")
        filing.valid_until = "2026-02-01"
        session.add(filing)
    assert "✗ 无效" in desk.see("wang", f"/console/usage/{usage}")


def test_a_corrected_call_says_so(town: Town, desk: Desk) -> None:
    usage = trade(town)[0]
    desk.press("chen", "propose-correction", usage_id=usage, reason="重复调用")
    assert "重复调用" in desk.see("wang", f"/console/usage/{usage}")


def test_an_empty_batch_offers_no_freeze_and_what_waits_is_counted_on_the_overview(town: Town, desk: Desk) -> None:
    town.voucher(1_000)
    text = desk.see("chen", made(desk, town))
    assert "所选期间没有可申报的扣费" in text
    assert "freeze-claim" not in buttons(text)
    assert "discard-claim" in buttons(text)
    assert re.search(r"claim batches under way</a></dt><dd>1</dd>", desk.see("chen", "/city", "en"))
