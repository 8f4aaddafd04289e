"""Journeys at the desks in a real browser: who registers, who publishes, who reviews, who issues money, who is told."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from marketplace.organisations.uscc import check_character
from tests.e2e.test_market_node import MODEL, ROW, until, usage
from tests.live import LiveMarket
from tests.marketplace.bundles import linear_zip
from tests.neighbours import ask
from tests.web.conftest import Visit

LANGUAGES = ("zh", "en")


def press(page: Page, name: str) -> None:
    page.get_by_role("main").get_by_role("button", name=name, exact=True).first.click()


def fill(page: Page, label: str, value: str) -> None:
    page.get_by_label(re.compile(rf"^{re.escape(label)}")).first.fill(value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_factory_applies_two_operators_issue_and_the_factory_holds_the_voucher(visit: Visit, language: str) -> None:
    en = language == "en"
    face = "1,234.56" if en else "2,345.67"
    factory = visit("/console/vouchers", who="factory", language=language)
    fill(factory, "Amount (yuan)" if en else "申请金额 (元)", face)
    press(factory, "Save the application" if en else "保存申请")
    press(factory, "Hand in" if en else "提交")
    expect(factory.get_by_role("heading", level=1)).to_contain_text("Hand in" if en else "提交申请")
    press(factory, "Confirm" if en else "确认")

    first = visit("/city/applications", who="operator", language=language)
    mine = first.locator("section.panel", has_text=f"¥{face}")
    for step in (
        ("Check", "Approve", "Put on public notice", "Confirm") if en else ("核验", "批准", "公示", "公示期满确认")
    ):
        mine.get_by_role("button", name=step, exact=True).click()
        expect(first.get_by_role("heading", level=1)).to_be_visible()
    first.goto("/city/vouchers")
    press(first, "Propose" if en else "提出发放")
    expect(first.get_by_text(face.replace(",", ""))).to_be_visible()  # the amount is asked once more
    press(first, "Confirm" if en else "确认")
    expect(first.get_by_text("another person has to approve it" if en else "须由另一人批准")).to_be_visible()

    second = visit("/city/vouchers", who="operator2", language=language)
    press(second, "Approve the issue" if en else "批准发放")
    press(second, "Confirm" if en else "确认")
    factory.goto("/console/vouchers")
    expect(factory.locator("article.voucher", has_text=f"¥{face} / ¥{face}")).to_be_visible()
    factory.goto("/console/notices")
    expect(
        factory.get_by_role("listitem").filter(has=factory.locator("a[href*='/console/vouchers/vch_']")).first
    ).to_be_visible()
    second.goto("/city/ledger")
    expect(second.get_by_role("status")).to_contain_text("✓")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_vendor_publishes_is_returned_hands_in_again_and_is_listed(
    visit: Visit, tmp_path: Path, language: str
) -> None:
    en = language == "en"
    name = f"dongzhi/desk-{language}"
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(linear_zip(tmp_path, name))
    vendor = visit("/vendor/publish", who="vendor", language=language)
    fill(vendor, "Name" if en else "名称", name)
    vendor.get_by_label(re.compile("^Bundle" if en else "^模型包")).set_input_files(bundle)
    press(vendor, "Inspect and publish" if en else "检测并发布")
    expect(vendor.get_by_role("status")).to_contain_text(f"{name}@1")
    vendor.goto(f"/vendor/models/{name}")
    fill(vendor, "Price (fen)" if en else "单价 (分)", "0.37")
    press(vendor, "Publish the price" if en else "发布价格")
    expect(vendor.get_by_text("0.37")).to_be_visible()
    press(vendor, "Confirm" if en else "确认")
    press(vendor, "Hand in for review" if en else "送审")

    operator = visit("/city", who="operator", language=language)
    queued = operator.locator("article", has_text=f"{name}@1")
    queued.get_by_label("What to mend" if en else "退回原因").fill("说明用途")
    queued.get_by_role("button", name="Return" if en else "退回", exact=True).click()
    expect(queued).to_have_count(0)

    vendor.reload()
    press(vendor, "Hand in for review" if en else "送审")
    operator.goto("/city")
    queued.get_by_role("button", name="Approve and list" if en else "通过上架").click()
    expect(queued).to_have_count(0)
    visitor = visit(f"/models/{name}", language=language)
    expect(visitor.get_by_role("heading", level=1)).to_be_visible()
    expect(visitor.get_by_text("0.37").first).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_key_is_shown_once_works_and_stops_when_it_is_revoked(
    visit: Visit, live_market: LiveMarket, language: str
) -> None:
    en = language == "en"
    page = visit("/console/keys", who="factory", language=language)
    fill(page, "Name" if en else "名称", f"line-{language}")
    press(page, "Create" if en else "创建")
    key = page.locator("code.secret").last.inner_text()
    assert key.startswith("am_")
    ask = httpx.Client(base_url=live_market.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    model = "/v2/models/dongzhi--machine-failure-boosting"
    assert ask.get(model).status_code == 200
    page.goto("/console/keys")
    row = page.get_by_role("row", name=f"line-{language}")
    assert key not in page.content()
    row.get_by_role("button", name="Revoke" if en else "吊销").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("?")
    press(page, "Confirm" if en else "确认")
    expect(row).to_contain_text("revoked" if en else "已吊销")
    assert ask.get(model).status_code == 401


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_wrong_credit_code_is_said_beside_what_was_typed_and_a_right_one_is_received(
    visit: Visit, language: str
) -> None:
    en = language == "en"
    page = visit("/register", language=language)
    words = {
        "Chinese name": ("中文名称", "东莞试验厂"), "Short name": ("短名", f"trial-{language}"),
        "Unified social credit code": ("统一社会信用代码", "91441900MA4UABCD10"),
        "Your name": ("您的姓名", "赵工"), "E-mail": ("邮箱", f"zhao-{language}@example.com"),
        "Legal representative": ("法定代表人", "赵工"), "Password": ("密码", "a long enough pass phrase"),
    }  # fmt: skip
    for english, (chinese, value) in words.items():
        fill(page, english if en else chinese, value)
    press(page, "Send" if en else "提交")
    expect(page.get_by_role("alert")).to_be_visible()
    code = page.get_by_label(re.compile("^Unified" if en else "^统一社会"))
    expect(code).to_have_attribute("aria-invalid", "true")
    expect(code).to_have_accessible_description(re.compile("."))  # the message stands at the field
    expect(code).to_have_value("91441900MA4UABCD10")
    code.fill(lawful_code(language))
    fill(page, "Password" if en else "密码", "a long enough pass phrase")
    press(page, "Send" if en else "提交")
    expect(page.get_by_role("status")).to_contain_text("✓")

    operator = visit("/city/organisations?status=pending", who="operator", language=language)
    row = operator.get_by_role("row", name="东莞试验厂").filter(has_text=f"trial-{language}")
    row.get_by_role("button", name="Approve" if en else "批准", exact=True).click()
    operator.goto("/city/organisations?status=pending")
    expect(row).to_have_count(0)


def lawful_code(language: str) -> str:
    """A code of 18 characters whose check character is right; no firm's."""
    body = "91441900MA4UTE5T" + {"zh": "1", "en": "2"}[language]
    return body + check_character(body)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_colleague_is_invited_and_sets_a_password(visit: Visit, live_market: LiveMarket, language: str) -> None:
    en = language == "en"
    page = visit("/console/members", who="factory", language=language)
    fill(page, "Name" if en else "名称", "孙工")
    fill(page, "E-mail" if en else "邮箱", f"sun-{language}@example.com")
    press(page, "Invite" if en else "邀请")
    link = page.locator("code.secret").last.inner_text()
    guest = visit(link, language=language)
    fill(guest, "New password" if en else "新密码", "another long pass phrase")
    press(guest, "Save" if en else "保存")
    expect(guest.get_by_role("status")).to_contain_text("✓")
    fill(guest, "E-mail" if en else "邮箱", f"sun-{language}@example.com")
    fill(guest, "Password" if en else "密码", "another long pass phrase")
    press(guest, "Log in" if en else "登录")
    guest.goto("/console")
    expect(guest.get_by_role("heading", level=1)).to_be_visible()


def test_a_month_s_statement_is_read_and_downloaded_in_each_format(visit: Visit) -> None:
    page = visit("/console/statements", who="factory")
    for form in ("CSV", "XLSX", "JSON"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=form, exact=True).click()
        assert waiting.value.path().stat().st_size > 50


def test_every_desk_works_without_scripts(visit: Visit) -> None:
    page = visit("/console", who="factory", scripts=False)
    for path in ("", "/usage", "/subscriptions", "/vouchers", "/statements", "/keys", "/members", "/notices"):
        page.goto(f"/console{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    page = visit("/city", who="operator", scripts=False)
    for path in ("", "/organisations", "/programmes", "/applications", "/vouchers", "/filings", "/ledger", "/audit"):
        page.goto(f"/city{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_two_operators_claim_what_a_factory_used_and_a_call_s_trace_shows_the_payment(
    visit: Visit, live_market: LiveMarket, language: str
) -> None:
    en = language == "en"
    factory, chen = live_market.client("factory"), live_market.client("operator")
    filing = ask(chen.get("/api/v1/filings"))["items"][0]["number"]
    ask(chen.put(f"/api/v1/models/{MODEL}/filing", json={"filing": filing}))
    answered = {ask(factory.post(f"/v1/use/{MODEL}", json=ROW))["usage_id"] for _ in range(30)}
    until(lambda: answered <= set(usage(live_market)))

    first = visit("/city/claims", who="operator", language=language)
    title = "Demonstration model voucher (deducted at use)" if en else "演示模型券(直接抵扣)"
    first.get_by_label("Programme" if en else "计划").select_option(label=f"{title} v1")  # each version is claimed for
    press(first, "Make and look" if en else "新建并查看")
    expect(first.locator("#candidates")).to_contain_text("✓ claimed" if en else "✓ 列入")
    where = first.url
    press(first, "Freeze" if en else "冻结")
    press(first, "Confirm" if en else "确认")
    for step in ("Submit", "Pass the review") if en else ("提交", "复核通过"):
        press(first, step)
    press(first, "Put on public notice" if en else "公示")
    press(first, "Confirm" if en else "确认")
    expect(first.locator("#way")).to_contain_text("You froze this batch" if en else "批次由您冻结")

    second = visit(where, who="operator2", language=language)
    press(second, "Approve" if en else "批准")
    press(second, "Confirm" if en else "确认")
    first.goto(where)
    reference = f"国库 2026-{language}"
    first.get_by_label("Payment reference" if en else "付款凭证号").fill(reference)
    press(first, "Enter the payment" if en else "登记付款")
    press(first, "Confirm" if en else "确认")
    expect(first.locator("#way")).to_contain_text("You entered this payment" if en else "付款由您登记")
    second.goto(where)
    press(second, "Confirm the payment" if en else "确认付款")
    press(second, "Confirm" if en else "确认")

    # others' contracts are in the batch too; and a charge whose share of a fen is still to come is in none
    claims = (ask(chen.get(f"/api/v1/usage/{each}"))["claim"] for each in sorted(answered))
    line = next(claim["line_id"] for claim in claims if claim)
    second.locator(f"#{line}").get_by_role("link", name="trace" if en else "追溯", exact=True).click()
    call = second.get_by_role("link", name=re.compile("^[0-9A-Z]{26}$")).first
    usage_id = call.inner_text()
    call.click()
    expect(second.locator("#claim")).to_contain_text(reference)
    own = visit(f"/console/usage/{usage_id}", who="factory", language=language)
    expect(own.locator("#claim")).to_contain_text(reference)
    expect(own.locator("#claim").get_by_role("link")).to_have_count(0)
