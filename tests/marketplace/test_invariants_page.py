"""The table of invariants in docs/vouchers.md: eleven rows, and every test and constraint that it names is there."""

import re
from pathlib import Path

import pytest

PAGE = Path("docs/vouchers.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
TESTS = {
    name for path in Path("tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
}
SOURCE = "\n".join(path.read_text("utf-8") for path in Path("marketplace").rglob("*.py"))


def test_the_eleven_are_all_there():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 12))


@pytest.mark.parametrize(("number", "row"), [(row[0], row) for row in ROWS])
def test_each_names_tests_that_exist(number, row):
    named = re.findall(r"`(test_\w+)`", row[3])
    assert named
    assert set(named) <= TESTS
    assert any(f"invariant_{number}_" in name for name in named)


def test_the_constraints_it_names_are_in_the_schema():
    for row in ROWS:
        for check in re.findall(r"CHECK ((?:`\w+`(?:, )?)+)", row[2]):
            for name in re.findall(r"\w+", check):
                assert f'"{name}"' in SOURCE
