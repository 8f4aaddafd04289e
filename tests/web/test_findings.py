"""Findings at city hall in a real browser: looked for, read down to a call's trace, and decided with a reason."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.test_findings import calls  # noqa: F401
from tests.live import LiveMarket
from tests.web.conftest import Visit


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.usefixtures("calls")
def test_an_operator_looks_follows_the_evidence_and_decides(
    visit: Visit, live_market: LiveMarket, language: str
) -> None:
    en = language == "en"
    page = visit("/city", who="operator", language=language)
    page.get_by_role("main").get_by_role("link", name="findings to settle" if en else "待处置线索").click()
    page.get_by_role("button", name="Look now" if en else "现在查找").click()
    page.get_by_label("Kind" if en else "类型").select_option("IDENTICAL_REQUESTS")
    page.get_by_label("Disposition" if en else "处置").select_option("")
    page.get_by_role("button", name="Filter" if en else "筛选").click()
    page.get_by_role("link", name="calls with the same request" if en else "内容相同的调用").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("same request" if en else "内容相同的调用")
    trace = page.locator("#evidence a[href^='/console/usage/']").first
    usage_id = trace.inner_text()
    trace.click()
    expect(page.get_by_text(usage_id).first).to_be_visible()
    page.go_back()
    decided = page.locator("#disposition")
    decided.get_by_role("combobox").select_option("under_review")
    decided.get_by_role("button", name="Record it" if en else "记录处置").click()
    expect(decided.get_by_role("textbox")).to_be_focused()  # a reason is asked for
    decided.get_by_role("textbox").fill(f"问设备节拍 {language}")
    decided.get_by_role("button", name="Record it" if en else "记录处置").click()
    expect(page.locator("#disposition")).to_contain_text(f"问设备节拍 {language}")
    decided.get_by_role("combobox").select_option("confirmed")
    decided.get_by_role("textbox").fill("属实")
    decided.get_by_role("button", name="Record it" if en else "记录处置").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("confirmed" if en else "属实")
    page.get_by_role("link", name="propose a correction" if en else "提出更正").click()
    expect(page.get_by_label("Usage id" if en else "用量编号")).to_have_value(usage_id)
