"""A finding's page: what it does not prove, its evidence in names, and the form to decide, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlmodel import select

import serving.leases
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.findings import recording
from marketplace.findings.meaning import MEANINGS
from marketplace.findings.tables import Finding
from marketplace.keys.tables import ApiKey
from marketplace.organisations.tables import Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.vouchers.signals import Code
from tests.marketplace.test_case_pages import Visitors
from tests.marketplace.test_findings import trade
from tests.marketplace.town import Town

LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
DOCS = LINK.sub(r"\1", (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8"))
LANGUAGES = pytest.mark.parametrize("language", ["zh", "en"])


@pytest.fixture
def town(market, tmp_path, monkeypatch):
    town = Town(market.engine, tmp_path / "journal", now=now_ms() - 3_600_000)
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    market.catalogue_changed()
    return town


@pytest.fixture
def people(town, client):
    return Visitors(town, client)


def look(town: Town) -> dict[str, Finding]:
    recording.run(town.engine, town.now)
    with reading(town.engine) as session:
        return {row.code: row for row in session.exec(select(Finding))}


def test_what_each_finding_does_not_prove_and_what_to_do_is_what_the_documentation_says():
    assert set(MEANINGS) == set(Code)
    for code, meaning in MEANINGS.items():
        section = DOCS.partition(f"### `{code}`")[2].partition("###")[0]
        for sentence in (meaning.not_zh, meaning.not_en, meaning.do_zh, meaning.do_en):
            assert sentence in section, (code, sentence)


@LANGUAGES
def test_a_finding_s_page_names_parties_models_keys_and_programmes_in_the_reader_s_language(town, people, language):
    en = language == "en"
    trade(town, 20, digest="same")
    with transaction(town.engine) as session:
        for each in ("org_factory", "org_vendor"):
            session.get_one(Organisation, each).controllers = ["周大海"]
            session.get_one(Organisation, each).name_en = f"{each} Ltd"
        facts = {"name": "产线 1", "prefix": "k", "sha256": "0" * 64, "scopes": ["use"]}
        session.add(ApiKey(id="key_1", organisation_id="org_factory", **facts))
    found = look(town)
    assert {Code.RELATED_PARTY, Code.IDENTICAL_REQUESTS, Code.CONSTANT_INTERVALS} <= set(found)
    pages = {code: people.see("chen", f"/city/findings/{row.id}", language) for code, row in found.items()}
    for code, text in pages.items():
        meaning = MEANINGS[Code(code)]
        assert (meaning.not_en if en else meaning.not_zh) in text
        assert (meaning.do_en if en else meaning.do_zh) in text
        assert ("Demonstration" if en else "演示券") in text  # the programme by its title
        assert ">vendor/steel</a>" in text  # what the contract is for
        assert found[code].id in text
    related = re.sub(r"<[^>]*>", "", pages[Code.RELATED_PARTY])
    assert ("周大海 controls (or holds all of) org_vendor Ltd" if en else "周大海 控制 (或全资持有)") in related
    assert "100% of" not in related  # declared control is no share
    assert "org_factory Ltd and the provider org_vendor Ltd are related" in found[Code.RELATED_PARTY].text_en
    assert " on 1 day at almost constant" in found[Code.CONSTANT_INTERVALS].text_en
    (days,) = re.findall(r"<dt>(?:Days|日期)</dt><dd>([^<]*)</dd>", pages[Code.IDENTICAL_REQUESTS])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d( – \d{4}-\d\d-\d\d)?", days)  # a day is told once
    assert "产线 1 <code>key_1</code>" in pages[Code.CONSTANT_INTERVALS]


@LANGUAGES
def test_a_shareholder_who_is_no_organisation_here_stands_by_its_declared_name(town, people, language):
    trade(town, 1)
    with transaction(town.engine) as session:
        for each in ("org_factory", "org_vendor"):
            held = {"name": "恒达投资", "code": demo_code(77), "share_bp": 3_000}
            session.get_one(Organisation, each).shareholders = [held]
    text = people.see("chen", f"/city/findings/{look(town)[Code.RELATED_PARTY].id}", language)
    plain = re.sub(r"<[^>]*>", "", text)
    assert ("恒达投资 holds 30% of factory" if language == "en" else "恒达投资 持有 factory 的 30%") in plain
    assert f'title="{demo_code(77)}"' in text  # the code for who looks it up


@LANGUAGES
def test_the_list_turns_no_pages_where_there_is_one_and_has_both_parties_in_one_place(town, people, language):
    trade(town, 20, digest="same")
    look(town)
    text = people.see("chen", "/city/findings", language)
    assert 'class="paging"' not in text
    assert ("enterprise / provider" if language == "en" else "企业 / 供应商") in text
