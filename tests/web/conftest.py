"""A real Chromium in front of a real market. Nothing but the market may be asked for: any other request is refused and
fails the test, and so does a script error or a breach of the pages' content policy.

    def test_a_visitor_searches(visit: Visit) -> None:
        page = visit("/", language="en")                  # a visitor
        page = visit("/console", who="factory")           # logged in through the login form, in Chinese

`visit` also takes `dark=True` and `scripts=False`. Find things as people do: `page.get_by_role`, `page.get_by_label`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, sync_playwright

from marketplace.web.rendering import LANGUAGE_COOKIE
from tests.live import LiveMarket

CHROMIUM = os.environ.get("ALGOMART_TEST_CHROMIUM", "/usr/bin/chromium")
# Names are not even looked up; and as root, Chromium has no sandbox.
ARGUMENTS = [
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
]
LABELS = {"zh": ("邮箱", "密码", "登录"), "en": ("E-mail", "Password", "Log in")}
WAIT_MS = 30_000
Visit = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder drives a browser."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One browser for the folder, closed before tests elsewhere start event loops of their own in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Guard:
    """Refuses and remembers what a page must not do."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.broken: list[str] = []

    def watch(self, context: BrowserContext) -> None:
        context.route("**/*", self._decide)
        context.on("weberror", lambda error: self.broken.append(f"script error: {error.error}"))
        context.on("console", self._listen)

    def _decide(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        if f"{address.scheme}://{address.netloc}" == self.origin or address.scheme in ("data", "blob"):
            route.continue_()
            return
        self.broken.append(f"asked for {route.request.url}")
        route.abort("blockedbyclient")

    def _listen(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.broken.append(message.text)


@pytest.fixture
def visit(chromium: Browser, live_market: LiveMarket) -> Iterator[Visit]:
    """`visit(path, *, language, who, dark, scripts)`: a fresh browser's page at `path`; `who`: a demonstration user."""
    contexts: list[tuple[BrowserContext, Guard]] = []
    logins: dict[str, str] = json.loads((live_market.home / "demo-logins.json").read_text(encoding="utf-8"))

    def go(path: str = "/", *, language: str = "zh", who: str = "", dark: bool = False, scripts: bool = True) -> Page:
        context = chromium.new_context(
            base_url=live_market.url,
            locale="en-GB" if language == "en" else "zh-CN",
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            viewport={"width": 1280, "height": 900},
        )
        guard = Guard(live_market.url)
        guard.watch(context)
        contexts.append((context, guard))
        context.set_default_timeout(WAIT_MS)
        context.add_cookies([{"name": LANGUAGE_COOKIE, "value": language, "url": live_market.url}])
        page = context.new_page()
        if who:
            log_in(page, f"{who}@demo.example", logins[f"{who}@demo.example"], language)
        page.goto(path)
        return page

    yield go
    for context, _ in contexts:
        context.close()
    broken = [what for _, guard in contexts for what in guard.broken]
    assert not broken, broken


def log_in(page: Page, email: str, password: str, language: str = "zh") -> None:
    """Through the login form, as a person does."""
    email_label, password_label, button = LABELS[language]
    page.goto("/login")
    page.get_by_label(email_label).fill(email)
    page.get_by_label(password_label).fill(password)
    page.get_by_role("main").get_by_role("button", name=button).click()
    page.wait_for_url("**/")
