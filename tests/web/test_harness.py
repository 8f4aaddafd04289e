"""The harness itself: a page that asks for something foreign is caught."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.live import LiveMarket
from tests.web.conftest import Guard, Visit


def test_a_request_to_anywhere_else_is_refused_and_remembered(chromium: Browser, live_market: LiveMarket) -> None:
    context = chromium.new_context()
    guard = Guard(live_market.url)
    guard.watch(context)
    page = context.new_page()
    page.set_content('<img src="http://cdn.example/logo.png" alt="logo">', wait_until="load")
    context.close()
    assert guard.broken == ["asked for http://cdn.example/logo.png"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_people_log_in_through_the_form(visit: Visit, language: str) -> None:
    page = visit("/console", language=language, who="factory")
    leave = {"zh": "退出", "en": "Log out"}[language]
    expect(page.get_by_role("button", name=leave)).to_be_visible()
