"""docs/vouchers-worked-example.md against what the market does: each of its tables is what comes out of the story.

A table stands under a line `<!-- from the code: NAME -->`; its rows are compared, its headings are free. After a change
of the code, `pytest -k NAME` prints the rows as they are now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

import serving.leases
from marketplace.db import create_tables, open_database
from marketplace.ledger.tables import LedgerAccount
from marketplace.usage import recovery
from marketplace.vouchers.programme import ProgrammeFile, Ratio, read_programme
from marketplace.vouchers.wording import describe
from tests.marketplace.worked_example import WAYS, Story, document, play
from tests.marketplace.worked_tables import TABLES, Rows, as_table, sums

PAGE = (Path(__file__).parents[2] / "docs" / "vouchers-worked-example.md").read_text(encoding="utf-8")
VOUCHERS = (Path(__file__).parents[2] / "docs" / "vouchers.md").read_text(encoding="utf-8")
MARK = re.compile(r"^<!-- from the code: ([\w ]+) -->\n\n?((?:\|.*\n)+)", re.MULTILINE)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TOLD: dict[str, Rows] = {
    name: [cells(line) for line in table.splitlines()[2:]]  # after the headings
    for name, table in MARK.findall(PAGE)
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Story]]:
    """The story in each way of settling, on a market of its own. Nothing changes them afterwards."""
    told = []
    with pytest.MonkeyPatch.context() as patch:

        def clock(town: Any) -> None:
            patch.setattr(serving.leases, "now_ms", lambda: town.now)
            patch.setattr(recovery, "now_ms", lambda: town.now)

        for mode, payee in WAYS:
            folder = tmp_path_factory.mktemp(payee)
            engine: Engine = open_database(f"sqlite:///{folder / 'market.db'}")
            create_tables(engine)
            told.append(play(engine, folder, mode, payee, clock))
    yield told
    for story in told:
        story.town.engine.dispose()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_what_the_market_does(name: str, stories: list[Story]) -> None:
    rows = TABLES[name](stories)
    assert rows
    assert TOLD.get(name) == rows, f"the rows of “{name}” are now\n{as_table(rows)}"


def test_every_table_that_says_so_is_compared_and_every_other_says_nothing_of_the_story() -> None:
    assert list(TOLD) == list(TABLES)
    assert len(re.findall(r"^\| ?---", PAGE, re.MULTILINE)) == len(TABLES) + 1  # the sentences have their own test


def test_every_figure_between_the_tables_is_the_story_s(stories: list[Story]) -> None:
    """A number in a sentence stands in a table too, or is one of these sums."""
    story = stories[0]
    prose = re.sub(r"^```[^`]*^```$|^\|.*$|^#.*$|^>.*$|`[^`\n]*`|\]\([^)]*\)", "", PAGE, flags=re.MULTILINE)
    prose = re.sub(r"\d+ (January|February|March)( \d{4})?|〔\d+〕\d+|\b[A-Z]\d\d?\b|SHA-256", "", prose)
    said = set(re.findall(r"\d[\d,]*(?:\.\d+)?", prose))
    tables = set(re.findall(r"\d[\d,]*(?:\.\d+)?", "\n".join(re.findall(r"^\|.*$", PAGE, re.MULTILINE))))
    assert len(said) > 40
    assert {number.rstrip(",") for number in said} <= tables | {f"{sum_:,g}" for sum_ in sums(story)}


def test_the_story_has_every_posting_there_is(stories: list[Story]) -> None:
    for story in stories:
        kinds = {each.kind for stage in story.stages.values() for each in stage}
        assert kinds == {f"P{number}" for number in range(1, 15)}


def test_the_page_of_vouchers_says_what_each_account_is(stories: list[Story]) -> None:
    told = re.findall(r"^\| `([QM]\.[a-z.]+)` \|", VOUCHERS, re.MULTILINE)
    used = {row.code.partition("[")[0] for story in stories for row in story.town.rows(LedgerAccount)}
    assert len(told) == len(set(told))
    assert set(told) == used


def test_the_journals_of_the_story_agree_with_its_ledger(stories: list[Story]) -> None:
    for story in stories:
        found = story.replayed()
        assert len(found) == 2
        assert all(each.agrees for each in found)


def test_the_page_quotes_the_file_s_sources_as_one_sentence() -> None:
    """The file says them apart; what the page quotes has all of them."""
    (quote,) = re.findall(r"^> (model vouchers: .+)$", PAGE.replace("*", ""), re.MULTILINE)
    plain = quote.replace(" (备案)", "")
    for each in document()["sources"]:
        assert each["en"] in plain


# --- the rule in plain words ------------------------------------------------------------------------------------------

OTHER: dict[str, dict[str, Any]] = {  # another value of the field, which has to change the sentence
    "pool_fen": {"pool_fen": 1_600_000_000},
    "cap_fen": {"cap_fen": 1},
    "filing_required": {"filing_required": False},
    "ratio": {"ratio": Ratio(num=1, den=2)},
    "settlement_mode": {"settlement_mode": "deduct"},
    "payee": {"payee": "provider"},
    "validity": {"validity": None},
    "tax_basis": {"tax_basis": None},
    "notice_days": {"notice_days": 6},
    "late_usage_grace_days": {"late_usage_grace_days": 1},
    "related_party_policy": {"related_party_policy": "allow"},
    "clawback_policy": {"clawback_policy": "proportional"},
}


def test_the_sentences_of_the_page_are_the_programme_s_and_each_is_its_field_s(stories: list[Story]) -> None:
    (table,) = re.findall(r"^<!-- from the code, by field: sentences -->\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [cells(line) for line in table.splitlines()[2:]]
    rules = stories[0].rules()
    assert [row[0].strip("`") for row in rows] == list(OTHER)
    said = pairs(rules)
    for code, zh, en in rows:
        assert (zh, en) in said
        assert (zh, en) not in pairs(rules.model_copy(update=OTHER[code.strip("`")]))


def pairs(rules: ProgrammeFile) -> list[tuple[str, str]]:
    words = describe(rules)
    return list(zip(words["zh"], words["en"], strict=True))


def test_what_the_file_leaves_open_is_said_in_the_words_of_the_page() -> None:
    words = describe(read_programme(document()))
    for language in ("zh", "en"):
        assert words[language][-1] in PAGE
