"""Journeys through the shop in a real browser, in both languages: search, try, subscribe, choose, adapt, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.live import LiveMarket
from tests.web.conftest import Visit
from tests.web.samples import write_milling_rows

LANGUAGES = ("zh", "en")
MILLING = "dongzhi/machine-failure-boosting"
LONG_MS = 120_000


def say(page: Page, zh: str, en: str) -> str:
    """The words of the page's own language."""
    return en if page.locator("html").get_attribute("lang") == "en" else zh


@pytest.mark.parametrize(("language", "query", "name"), [("zh", "缺陷", "缺陷"), ("en", "wear", "Milling failure")])
def test_a_visitor_searches_opens_a_model_and_switches_language(
    visit: Visit, language: str, query: str, name: str
) -> None:
    page = visit("/", language=language)
    page.get_by_role("searchbox", name=say(page, "搜索", "Search")).fill(query)
    page.get_by_role("search").get_by_role("button", name=say(page, "搜索", "Search")).click()
    page.get_by_role("link", name=name).first.click()
    title = page.get_by_role("heading", level=1)
    expect(title).to_contain_text(name)
    before = title.inner_text()
    expect(page.get_by_role("link", name=say(page, "登录后试用", "Log in to try it"))).to_be_visible()
    page.get_by_role("link", name=say(page, "English", "中文")).click()
    expect(title).not_to_have_text(before)
    page.reload()
    assert page.locator("html").get_attribute("lang") == ("zh-CN" if language == "en" else "en")


def test_a_tab_has_the_markets_icon(visit: Visit) -> None:
    page = visit("/")
    icon = page.request.get(page.get_attribute("link[rel=icon]", "href") or "/none")
    assert (icon.status, icon.headers["content-type"].split(";")[0]) == (200, "image/svg+xml")


@pytest.mark.parametrize("language", LANGUAGES)
def test_ticking_a_facet_narrows_the_shelf(visit: Visit, language: str) -> None:
    page = visit("/", language=language)
    page.get_by_role("checkbox", name=say(page, "文本分类", "text classification")).check()
    page.get_by_role("button", name=say(page, "筛选", "Filter")).click()
    expect(page.get_by_text(say(page, "3 个模型", "3 models"))).to_be_visible()
    expect(page.get_by_role("checkbox", name=say(page, "文本分类", "text classification"))).to_be_checked()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_visitor_who_logs_in_to_try_lands_on_the_model_and_sees_what_the_call_cost(
    visit: Visit, live_market: LiveMarket, language: str
) -> None:
    page = visit(f"/models/{MILLING}", language=language)
    page.get_by_role("link", name=say(page, "登录后试用", "Log in to try it")).click()
    logins = json.loads((live_market.home / "demo-logins.json").read_text(encoding="utf-8"))
    page.get_by_label(say(page, "邮箱", "E-mail")).fill("factory@demo.example")
    page.get_by_label(say(page, "密码", "Password")).fill(logins["factory@demo.example"])
    page.get_by_role("main").get_by_role("button", name=say(page, "登录", "Log in")).click()
    torque = page.get_by_label(say(page, "扭矩 (N·m)", "Torque (N·m)"))
    expect(torque).to_have_value("42.55")
    torque.fill("68")
    page.get_by_role("button", name=say(page, "运行", "Run")).click()
    outcome = page.get_by_role("status")
    expect(outcome).to_contain_text(say(page, "本次费用", "Charged"))
    expect(outcome).to_contain_text("0.37")
    expect(torque).to_have_value("68")
    page.get_by_role("link", name=say(page, "查这一次调用", "trace this call")).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(say(page, "来龙去脉", "Trace"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_whole_table_is_tried_at_once_and_charged_by_its_rows(visit: Visit, tmp_path: Path, language: str) -> None:
    page = visit(f"/models/{MILLING}", language=language, who="factory")
    table = page.get_by_label(say(page, "或一次试一张表", "Or a whole table"))
    table.set_input_files(write_milling_rows(tmp_path / "rows.csv", rows=100))
    page.get_by_role("button", name=say(page, "运行", "Run")).click()
    outcome = page.get_by_role("status")
    expect(outcome).to_contain_text(say(page, "本次费用: 37 分", "Charged: 37 fen"))
    expect(outcome.get_by_role("row")).to_have_count(51)  # the headings and the first 50 answers
    expect(outcome.get_by_text(say(page, "故障", "Failure"), exact=True).first).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_picture_model_is_tried_with_its_example_where_no_file_is_chosen(visit: Visit, language: str) -> None:
    page = visit("/models/lingnan/board-defects-compact", language=language, who="factory")
    expect(page.get_by_role("img", name=say(page, "示例图片", "example picture"))).to_be_visible()
    page.get_by_role("button", name=say(page, "运行", "Run")).click()
    expect(page.get_by_role("status")).to_contain_text(say(page, "断路", "Open circuit"))
    expect(page.get_by_role("status").get_by_role("meter")).to_have_count(7)


@pytest.mark.parametrize(
    ("language", "model"), [("zh", "lingnan/plant-load-linear"), ("en", "lingnan/concrete-strength-forest")]
)
def test_a_factory_ends_a_contract_and_subscribes_again_after_being_asked_once(
    visit: Visit, language: str, model: str
) -> None:
    page = visit("/console/subscriptions", language=language, who="factory")
    row = page.get_by_role("row").filter(has_text=model).filter(has=page.get_by_role("button"))
    row.get_by_role("button", name=say(page, "结束", "End")).click()
    page.get_by_role("button", name=say(page, "确认", "Confirm")).click()
    page.goto(f"/models/{model}")
    page.get_by_label(say(page, "合约金额", "Contract")).fill("250.50")
    page.get_by_label(say(page, "券用完之后", "When the voucher ends")).select_option("self_pay")
    page.get_by_label(say(page, "每月自付上限", "Own money a month")).fill("80")
    page.get_by_role("button", name=say(page, "订阅", "Subscribe")).click()
    expect(page.get_by_role("main")).to_contain_text("250.50")
    expect(page.get_by_role("main")).to_contain_text(model)
    page.get_by_role("button", name=say(page, "确认", "Confirm")).click()
    page.wait_for_url("**/console/subscriptions")
    expect(page.get_by_role("row").filter(has_text=model).filter(has_text="¥250.50")).to_have_count(1)
    page.goto(f"/models/{model}")
    expect(page.get_by_text(say(page, "已订阅", "Subscribed"))).to_be_visible()


@pytest.mark.parametrize(("language", "scripts"), [("zh", True), ("en", True), ("zh", False)])
def test_a_factory_chooses_on_its_own_rows_and_deletes_them_with_a_receipt(
    visit: Visit, tmp_path: Path, language: str, scripts: bool
) -> None:
    page = visit("/choose", language=language, who="factory", scripts=scripts)
    page.get_by_label(say(page, "样本文件", "Sample file")).set_input_files(write_milling_rows(tmp_path / "rows.csv"))
    page.get_by_role("button", name=say(page, "上传", "Upload")).click()
    label = page.get_by_label(say(page, "哪一列是正确答案", "Which column is the right answer"))
    label.select_option("设备故障")
    page.get_by_role("button", name=say(page, "在货架上试跑", "Run the shelf on it")).click()
    adapt = page.get_by_role("link", name=say(page, "适配", "Adapt"), exact=True)
    milling = page.get_by_role("row").filter(has_text=MILLING).first
    expect(milling).to_be_visible(timeout=LONG_MS)
    expect(milling).to_contain_text("¥")
    expect(page.get_by_role("img").first).to_be_visible()
    assert adapt.count() >= 4
    page.get_by_text(say(page, "未参评的模型和原因", "Left out, and why")).click()
    expect(page.get_by_role("row").filter(has_text="pearl/board-base")).to_be_visible()
    page.get_by_role("link", name=say(page, "换个答案列", "Another answer column")).click()
    page.get_by_role("button", name=say(page, "立即删除样本", "Delete these samples now")).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(say(page, "样本已删除", "The samples are deleted"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_factory_adapts_a_model_and_sees_it_beside_its_parent(visit: Visit, tmp_path: Path, language: str) -> None:
    page = visit(f"/models/{MILLING}", language=language, who="factory")
    page.get_by_role("main").get_by_role("link", name=say(page, "适配", "Adapt"), exact=True).click()
    page.get_by_label(say(page, "方法", "Recipe")).select_option("tabular_retrain")
    page.get_by_label(say(page, "或上传样本", "Or upload samples")).set_input_files(
        write_milling_rows(tmp_path / "rows.csv", rows=400)
    )
    page.get_by_label(say(page, "答案列", "Answer column")).fill("设备故障")
    page.get_by_label(say(page, "新模型的名称", "Name of the new model")).fill(f"mill-{language}")
    page.get_by_role("button", name=say(page, "开始适配", "Start adapting")).click()
    expect(page.get_by_role("status")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_be_visible()
    beside = page.get_by_role("heading", name=say(page, "与原模型相比", "Beside its parent"))
    expect(beside).to_be_visible(timeout=LONG_MS)
    page.get_by_role("link", name=say(page, "打开模型页", "Open its page")).click()
    expect(page.get_by_role("main")).to_contain_text(f"demo-factory/mill-{language}")
    expect(page.get_by_role("link", name=MILLING)).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_factory_compares_models_side_by_side(visit: Visit, language: str) -> None:
    page = visit(f"/models/{MILLING}", language=language)
    page.get_by_role("link", name=say(page, "比较", "Compare")).first.click()
    page.get_by_label(say(page, "模型 2", "Model 2")).fill("pearl/machine-failure-forest")
    page.get_by_role("main").get_by_role("button", name=say(page, "比较", "Compare")).click()
    expect(page.get_by_role("columnheader").filter(has_text=MILLING)).to_be_visible()
    expect(page.get_by_role("columnheader").filter(has_text="pearl/machine-failure-forest")).to_be_visible()


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_address_that_is_not_right_is_a_page_that_says_what_to_do(visit: Visit, language: str) -> None:
    for path in ("/?page=0", "/models/nobody/nothing"):
        page = visit(path, language=language)
        expect(page.get_by_role("alert")).to_contain_text(say(page, "怎么办", "What to do"))
        expect(page.get_by_role("link", name=say(page, "回到货架", "Back to the shelf"))).to_be_visible()
