"""The pages of case files, other subsidies, invoices and public notices: what each person sees and may do."""

from __future__ import annotations

import html
import re

import pytest
from fastapi.testclient import TestClient

import serving.leases
from marketplace.access import SESSION_COOKIE
from marketplace.catalogue.tables import Filing
from marketplace.claims import batches
from marketplace.clock import now_ms, policy_date
from marketplace.db import transaction
from marketplace.vouchers import objections
from marketplace.vouchers.ending import close_vouchers
from marketplace.vouchers.programme import CHECKS
from marketplace.vouchers.refusals import words as reason_words
from marketplace.web.rendering import words
from tests.marketplace.test_case_files import OBJECTION, PDF, People, apply, in_state, step
from tests.marketplace.town import CHEN, Town


@pytest.fixture
def town(market, tmp_path) -> Town:
    town = Town(market.engine, tmp_path / "journal", now=now_ms())
    market.catalogue_changed()
    return town


class Visitors(People):
    """The same people at the pages."""

    def see(self, who: str, path: str, language: str = "zh", status: int = 200) -> str:
        self._client.cookies.clear()
        if who:
            self._client.cookies.set(SESSION_COOKIE, self._sessions[who])
        answer = self._client.get(f"{path}{'&' if '?' in path else '?'}lang={language}")
        assert answer.status_code == status, answer.text
        return html.unescape(answer.text)

    def press(self, who: str, action: str, status: int = 303, **fields: str) -> str:
        self._client.cookies.clear()
        if who:
            self._client.cookies.set(SESSION_COOKIE, self._sessions[who])
        sent = fields | {"confirmed": "1"}
        answer = self._client.post(f"/do/{action}", data=sent, follow_redirects=False)
        assert answer.status_code == status, html.unescape(answer.text)
        return str(answer.headers.get("location", ""))


@pytest.fixture
def people(town: Town, client: TestClient, monkeypatch) -> Visitors:
    monkeypatch.setattr(objections, "THROTTLE", objections.AddressThrottle())
    return Visitors(town, client)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_file_is_uploaded_on_the_application_s_page_and_its_hash_is_shown_to_owner_and_operator(
    town, people, client, language
):
    application = apply(town, people)
    client.cookies.set(SESSION_COOKIE, people._sessions["wang"])
    sent = {"files": {"file": ("a.pdf", PDF)}, "data": {"code": "contract"}, "follow_redirects": False}
    answer = client.post(f"/console/applications/{application}/evidence", **sent)
    assert answer.headers["location"] == f"/console/applications/{application}#evidence"
    sha256 = people.ask("wang", "GET", f"/applications/{application}").json()["files"][0]["sha256"]
    for who, path in (("wang", "console"), ("chen", "city")):
        assert sha256 in people.see(who, f"/{path}/applications/{application}", language)
    people.see("rival", f"/console/applications/{application}", language, status=404)
    people.see("wang", f"/city/applications/{application}", language, status=403)
    refused = client.post(f"/console/applications/{application}/evidence", **sent)  # as the rival of the last look
    assert refused.status_code in (403, 404, 409)


def test_the_operator_asks_for_named_pieces_and_the_applicant_sees_which(town, people):
    application = apply(town, people)
    people.attach(application, PDF)
    step(people, application, "submit", "check")
    where = people.press("chen", "decide-application", application_id=application, decision="supplement", asked="plan")
    assert where == f"/city/applications/{application}"
    assert "请补正以下材料" in people.see("wang", f"/console/applications/{application}")
    change = {"application_id": application, "requested_yuan": "10", "evidence.plan": "二期"}
    people.press("wang", "change-application", **change)
    people.press("wang", "submit-application", application_id=application)
    assert people.ask("wang", "GET", f"/applications/{application}").json()["state"] == "submitted"


def test_a_stranger_objects_on_the_public_page_and_two_of_the_city_decide(town, people):
    application = in_state(town, "check", "approve", "publish", notice_days=5)
    for language in ("zh", "en"):
        assert "¥10.00" in people.see("", "/notices/vouchers", language)
        people.see("", f"/notices/vouchers/{application}", language)
    where = people.press("", "object", application_id=application, **OBJECTION)
    assert "✓" in people.see("", where)
    assert OBJECTION["name"] not in people.see("", "/notices/vouchers") + people.see("", where)
    assert OBJECTION["reason"] in people.see("chen", f"/city/applications/{application}")
    objection = people.ask("chen", "GET", f"/applications/{application}/objections").json()["items"][0]["id"]
    people.press("chen", "dismiss-objection", objection_id=objection, application_id=application, reason="不实")
    assert "不成立" in people.see("chen", f"/city/applications/{application}")


def test_an_override_shows_whose_turn_it_is(town, people):
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
    application = in_state(town, "check", checks=[{"code": "pool"}, {"code": "filing"}])
    page = f"/city/applications/{application}"
    assert "提出放行" in people.see("chen", page)
    fields = {"application_id": application, "code": "filing", "reason": "续期办理中"}
    people.press("chen", "propose-override", **fields)
    assert "须由另一人批准" in people.see("chen", page)
    text = people.see("lin", page)
    override = text.partition('name="override_id" value="')[2].partition('"')[0]
    people.press("chen", "approve-override", 403, override_id=override, application_id=application)
    people.press("lin", "approve-override", override_id=override, application_id=application)
    people.press("lin", "decide-application", application_id=application, decision="approve")
    assert people.ask("wang", "GET", f"/applications/{application}").json()["state"] == "approved"


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_check_is_told_by_its_name_with_its_code_beside_it(town, people, language):
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
    application = apply(town, people)
    people.attach(application, PDF)
    people.ask("wang", "PATCH", f"/applications/{application}", json={"evidence": [{"code": "plan", "value": "二期"}]})
    step(people, application, "submit", "check")
    names = {code: words()[f"v_check_{code}"][language] for code in CHECKS}
    lists = [people.see("wang", "/console/vouchers", language), people.see("chen", "/city/applications", language)]
    cases = [people.see(who, f"/{place}/applications/{application}", language)
             for who, place in (("wang", "console"), ("chen", "city"))]  # fmt: skip
    for text in lists + cases:
        for code, name in names.items():
            assert re.search(rf">{re.escape(name)}</span> <small[^>]*><code>{code}</code>", text)
        assert reason_words("NO_FILED_MODEL")[language == "en"] in text  # what failed says why
    assert ("Plan" if language == "en" else "计划") in lists[1]
    assert ("Demonstration" if language == "en" else "演示券") in lists[0]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_proposed_voucher_is_declined_or_withdrawn_on_the_page_and_may_be_proposed_again(town, people, language):
    application = in_state(town, "check", "approve", "publish", "confirm", notice_days=0)
    page, again = "/city/vouchers", {"application_id": application, "face_yuan": "10.00"}

    def propose() -> str:
        people.press("chen", "propose-voucher", **again)
        found = people.ask("chen", "GET", "/vouchers?state=proposed").json()["items"]
        return str(found[0]["id"])

    voucher = propose()
    assert 'action="/do/propose-voucher"' not in people.see("chen", page, language)  # nothing is left to propose
    assert 'action="/do/withdraw-voucher"' in people.see("chen", page, language)
    assert 'action="/do/decline-voucher"' not in people.see("chen", page, language)
    assert 'action="/do/decline-voucher"' in people.see("lin", page, language)
    people.press("lin", "decline-voucher", 400, voucher_id=voucher)
    people.press("lin", "decline-voucher", voucher_id=voucher, note="金额过高")
    text = people.see("lin", page, language)
    assert "金额过高" in text
    assert ("declined" if language == "en" else "未批准") in text
    assert 'action="/do/propose-voucher"' in text
    people.press("chen", "withdraw-voucher", voucher_id=propose())
    assert ("withdrawn" if language == "en" else "已撤回") in people.see("chen", page, language)
    assert voucher not in people.see("wang", "/console/vouchers", language)  # it holds none
    assert "金额过高" in people.see("wang", "/console/notices", language)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_voucher_is_revoked_on_the_page_by_two_persons(town, people, language):
    voucher, page = town.voucher(1_000), "/city/vouchers"
    forms = {name: f'action="/do/{name}-revocation"' for name in ("confirm", "decline", "withdraw")}
    assert 'action="/do/revoke-voucher"' in people.see("chen", page, language)
    people.press("chen", "revoke-voucher", 400, voucher_id=voucher)
    people.press("chen", "revoke-voucher", voucher_id=voucher, note="合同不实")
    text = people.see("chen", page, language)
    assert [name for name, form in forms.items() if form in text] == ["withdraw"]
    text = people.see("lin", page, language)
    assert [name for name, form in forms.items() if form in text] == ["confirm", "decline"]
    people.press("lin", "decline-revocation", voucher_id=voucher, note="查无此事")
    people.press("chen", "revoke-voucher", voucher_id=voucher, note="合同不实")
    people.press("chen", "withdraw-revocation", voucher_id=voucher)
    people.press("chen", "revoke-voucher", voucher_id=voucher, note="合同不实")
    people.press("lin", "confirm-revocation", voucher_id=voucher)
    revoked, closed = ("revoked", "closed") if language == "en" else ("已撤销", "已终结")
    for who, where in (("lin", page), ("wang", "/console/vouchers")):
        text = people.see(who, where, language)
        assert revoked in text
        assert "合同不实" in text
        assert not [form for form in forms.values() if form in text]
    with transaction(town.engine) as session:
        close_vouchers(session, town.now)
    for who, where in (("lin", page), ("wang", "/console/vouchers")):
        assert f"{closed} ({revoked})" in people.see(who, where, language)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_tranche_that_waits_is_approved_on_the_page_by_two_persons(town, people, language):
    parts = [{"code": "one", "fen": 300_000}, {"code": "two", "fen": 700_000, "own_approval": True}]
    which, page = {"programme_id": town.programme(tranches=parts), "tranche": "two"}, "/city/programmes"
    names = ("propose", "approve", "decline", "withdraw")

    def buttons(who: str) -> list[str]:
        text = people.see(who, page, language)
        return [name for name in names if f'action="/do/{name}-tranche"' in text]

    waits, hall = (
        words()["tranche_waits"][language],
        {"zh": "待复核批次", "en": "tranches for the second person"}[language],
    )
    assert buttons("chen") == ["propose"]
    assert waits in people.see("lin", page, language)
    assert hall not in people.see("lin", "/city", language)
    people.press("chen", "propose-tranche", **which)
    assert hall in people.see("lin", "/city", language)
    assert (buttons("chen"), buttons("lin")) == (["withdraw"], ["approve", "decline"])
    people.press("chen", "approve-tranche", 403, **which)
    people.press("lin", "decline-tranche", **which, note="资金未到位")
    assert "资金未到位" in people.see("chen", page, language)
    people.press("chen", "propose-tranche", **which)
    people.press("chen", "withdraw-tranche", **which)
    people.press("chen", "propose-tranche", **which)
    people.press("lin", "approve-tranche", **which)
    assert (buttons("chen"), buttons("lin")) == ([], [])
    assert waits not in people.see("chen", page, language)
    assert town.balance(f"Q.unissued[{which['programme_id']}]") == 1_000_000


def test_tranches_over_the_api_are_for_operators_and_approved_by_two_persons(town, people):
    parts = [{"code": "one", "fen": 300_000}, {"code": "two", "fen": 700_000, "own_approval": True}]
    town.programme(tranches=parts)
    path = "/programmes/town/tranches"
    for who, method, where, status in (
        ("", "GET", path, 401),
        ("wang", "GET", path, 403),
        ("wang", "POST", f"{path}/two/propose", 403),
        ("chen", "POST", f"{path}/two/pay", 400),
        ("chen", "POST", f"{path}/three/propose", 404),
    ):
        people.ask(who, method, where, status)
    assert people.ask("chen", "POST", f"{path}/two/propose").json()["approval"]["state"] == "proposed"
    refused = people.ask("chen", "POST", f"{path}/two/approve", 403).json()["error"]
    assert refused["code"] == "TWO_PERSONS"
    (pool,) = people.ask("wang", "GET", "/pool").json()["items"]
    assert (pool["waiting"], pool["waiting_fen"], pool["authorised_fen"]) == (["two"], 700_000, 300_000)
    people.ask("lin", "POST", f"{path}/two/decline", 400)
    people.ask("lin", "POST", f"{path}/two/decline", json={"note": "资金未到位"})
    people.ask("lin", "POST", f"{path}/two/propose")
    people.ask("chen", "POST", f"{path}/two/withdraw", 403)
    assert people.ask("chen", "POST", f"{path}/two/approve").json()["state"] == "approved"
    states = {row["tranche"]: row["state"] for row in people.ask("lin", "GET", path).json()["items"]}
    assert states == {"one": "approved", "two": "approved"}
    (pool,) = people.ask("wang", "GET", "/pool").json()["items"]
    assert (pool["waiting"], pool["authorised_fen"]) == ([], 1_000_000)


def test_subsidies_are_declared_and_invoices_entered_with_their_originals(town, people, client):
    town.voucher(1_000)
    contract = town.subscribe(contract_fen=90_000)
    fields = {"subscription_id": contract, "programme": "技改补贴", "authority": "工信局", "amount_yuan": "12.50"}
    people.press("wang", "declare-subsidy", **fields)
    subsidy = people.ask("wang", "GET", "/subsidies").json()["items"][0]
    assert subsidy["amount_fen"] == 1_250
    invoice = {"subscription_id": contract, "number": "A1", "amount_yuan": "9.00", "issued_on": "2027-01-10"}
    people.press("wang", "enter-own-invoice", **invoice)
    number = people.ask("wang", "GET", "/invoices").json()["items"][0]["id"]
    client.cookies.set(SESSION_COOKIE, people._sessions["wang"])
    for path in (f"/console/subsidies/{subsidy['id']}/evidence", f"/console/invoices/{number}/file"):
        answer = client.post(path, files={"file": ("原件.pdf", PDF)}, follow_redirects=False)
        assert answer.status_code == 303, answer.text
    for path in ("/console/subsidies", "/console/invoices"):
        for language in ("zh", "en"):
            assert "原件.pdf" in people.see("wang", path, language)
    assert "原件.pdf" not in people.see("rival", "/console/subsidies") + people.see("rival", "/console/invoices")
    fixed = people.ask("wang", "GET", "/subsidies").json()["items"][0]["files"][0]["id"]
    assert people.ask("wang", "POST", f"/evidence/{fixed}/withdraw", 409).json()["error"]["code"] == "EVIDENCE_FIXED"
    people.press("wang", "withdraw-subsidy", 403, subsidy_id=subsidy["id"], reason="x")
    people.press("chen", "withdraw-subsidy", subsidy_id=subsidy["id"], reason="登记有误")
    assert "登记有误" in people.see("chen", "/city/subsidies") + people.see("wang", "/console/subsidies")


def test_a_claimed_line_shows_which_invoice_backs_it_and_a_batch_what_other_subsidies_hold_back(
    town, people, client, market, monkeypatch
):
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    town.voucher(1_000, stacking="cap_total_ratio", stacking_max={"num": 1, "den": 2})
    contract = town.subscribe(contract_fen=90_000)
    for _ in range(3):
        node = town.node()
        node.call(count=81)
        node.stop()
    people.press(
        "wang", "declare-subsidy", subscription_id=contract, programme="技改", authority="局", amount_yuan="0.30"
    )
    invoice = {"subscription_id": contract, "number": "A1", "amount_yuan": "9.00", "issued_on": "2027-01-10"}
    people.press("wang", "enter-own-invoice", **invoice)
    today = policy_date(town.now).isoformat()
    with transaction(town.engine) as session:
        batch = batches.create(session, "town", today, today, member=CHEN).id
    assert "因其他补贴暂不列入 ¥0.20" in people.see("chen", f"/city/claims/{batch}")
    with transaction(town.engine) as session:
        batches.freeze(session, batches.get_batch(session, batch), market.blobs, member=CHEN, at_ms=town.now)
        line = batches.lines_of(session, batches.get_batch(session, batch))[0].id
    page = re.sub(r"<[^>]*>", "", people.see("chen", f"/city/claims/{batch}/{line}"))
    assert "支持本行 ¥0.29" in page
    assert "申请与核验" in page
    assert page.count("✓ 通过") == 6  # each check of the application, as it was made
