"""A case file in a real browser: applied with files, sent back, noticed, objected to by a stranger, issued."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.live import LiveMarket
from tests.neighbours import ask
from tests.web.conftest import Visit
from tests.web.test_desks import LANGUAGES, fill, press

PDF = b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
DAY_MS = 86_400_000


@pytest.fixture
def title(live_market: LiveMarket, language: str) -> Iterator[str]:
    """Of a demonstration programme that wants a contract as a file and a plan in words, with a public notice of a day;
    closed afterwards, so that others apply to those they know."""
    document = {
        "code": f"case-{language}",
        "title_zh": f"演示卷宗券 {language}",
        "title_en": f"Demonstration of a case file {language}",
        "is_demo": True,
        "pool_fen": 100_000_000,
        "tranches": [{"code": "one", "fen": 100_000_000}],
        "ratio": {"num": 1, "den": 3},
        "cap_fen": 10_000_000,
        "cap_period": "programme",
        "validity": {"days": 30},
        "evidence_schema": [
            {"code": "contract", "title_zh": "合同扫描件", "title_en": "Scanned contract", "kind": "file",
             "types": ["pdf"]},
            {"code": "plan", "title_zh": "应用计划", "title_en": "Plan of use", "required": False},
        ],
        "settlement_mode": "deduct",
        "payee": "platform",
        "tax_basis": {"fee_bp": 0, "vat_bp": 600},
        "notice_days": 1,
        "notice_on_objection": "continue",
    }  # fmt: skip
    operator = live_market.client("operator")
    made = ask(operator.post("/api/v1/programmes", json={"document": document}))["id"]
    ask(operator.post(f"/api/v1/programmes/{made}/activate"))
    yield str(document["title_en" if language == "en" else "title_zh"])
    ask(operator.post(f"/api/v1/programmes/{made}/close"))


def steps(page: Page, *names: str) -> None:
    for name in names:
        page.locator("#steps").get_by_role("button", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_case_goes_from_files_over_a_supplement_and_an_objection_to_the_proposal_of_a_voucher(
    visit: Visit, live_market: LiveMarket, tmp_path: Path, language: str, title: str
) -> None:
    en = language == "en"
    contract = tmp_path / "contract.pdf"
    contract.write_bytes(PDF)

    factory = visit("/console/vouchers", who="factory", language=language)
    form = factory.locator("article", has_text=title)
    form.get_by_label("Amount (yuan)" if en else "申请金额 (元)").fill("4,321.00" if en else "5,432.00")
    form.get_by_role("button", name="Save the application" if en else "保存申请").click()
    factory.locator("#upload").get_by_label(re.compile("^File" if en else "^文件")).set_input_files(contract)
    press(factory, "Upload" if en else "上传")
    expect(factory.locator("#evidence")).to_contain_text(hashlib.sha256(PDF).hexdigest())
    press(factory, "Hand in" if en else "提交")
    press(factory, "Confirm" if en else "确认")
    application = factory.url.rpartition("/")[2]

    operator = visit(f"/city/applications/{application}", who="operator", language=language)
    expect(operator.locator("#evidence")).to_contain_text(hashlib.sha256(PDF).hexdigest())
    steps(operator, "Check" if en else "核验")
    expect(operator.locator("#checks")).not_to_contain_text("✗")
    operator.get_by_label("Plan of use" if en else "应用计划").check()
    press(operator, "Send back for a supplement" if en else "退回补正")
    factory.reload()
    expect(factory.get_by_role("status")).to_contain_text("Plan of use" if en else "应用计划")
    fill(factory, "Plan of use" if en else "应用计划", "质检线")
    press(factory, "Save the changes" if en else "保存更改")
    press(factory, "Hand in" if en else "提交")
    press(factory, "Confirm" if en else "确认")
    operator.reload()
    steps(operator, *(("Check", "Approve", "Put on public notice") if en else ("核验", "批准", "公示")))

    stranger = visit("/notices/vouchers", language=language)
    noticed = stranger.get_by_role("row").filter(has_text=title)
    expect(noticed).to_contain_text("4,321.00" if en else "5,432.00")
    noticed.get_by_role("link", name="Object" if en else "提出异议").click()
    fill(stranger, "Your name or organisation" if en else "您的姓名或单位", "周女士")
    fill(stranger, "Telephone or e-mail" if en else "电话或邮箱", "zhou@example.com")
    fill(stranger, "Reason of the objection" if en else "异议理由", "该单位无此产线")
    press(stranger, "Send the objection" if en else "提交异议")
    expect(stranger.get_by_role("status")).to_contain_text("✓")
    stranger.goto("/notices/vouchers")
    assert not any(word in stranger.content() for word in ("周女士", "zhou@", "无此产线"))

    factory.reload()
    assert not any(word in factory.content() for word in ("周女士", "zhou@", "无此产线"))
    operator.reload()
    expect(operator.locator("#objections")).to_contain_text("周女士")
    fill(operator, "Reason of the decision" if en else "决定理由", "已现场核实")
    press(operator, "Dismiss" if en else "异议不成立")
    press(operator, "Confirm" if en else "确认")
    expect(operator.locator("#objections")).to_contain_text("已现场核实")
    yesterday(live_market, application)
    operator.reload()
    steps(operator, "Confirm" if en else "公示期满确认")
    operator.get_by_role("link", name="On to the issue" if en else "去发放").click()
    ready = operator.locator("form", has_text=title)
    ready.get_by_role("button", name="Propose" if en else "提出发放").click()
    press(operator, "Confirm" if en else "确认")
    waiting = operator.get_by_role("row").filter(has_text=title)
    expect(waiting).to_contain_text("another person has to approve it" if en else "须由另一人批准")
    found = ask(live_market.client("operator").get("/api/v1/vouchers", params={"state": "proposed"}))["items"]
    voucher = next(row["id"] for row in found if row["application_id"] == application)
    # nothing is left waiting, and the market's other tests go on being paid by the demonstration's own voucher
    ask(live_market.client("operator2").post(f"/api/v1/vouchers/{voucher}/decline", json={"note": "a test's own"}))


def yesterday(market: LiveMarket, application: str) -> None:
    """As if the notice had begun a day before: nothing in the API turns the calendar."""
    with sqlite3.connect(market.home / "market.db", timeout=30) as database:
        begin = "UPDATE application SET public_notice_at_ms = public_notice_at_ms - ? WHERE id = ?"
        database.execute(begin, (DAY_MS, application))
