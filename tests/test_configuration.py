"""docs/configuration.md names every setting with its true default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from marketplace.settings import Settings
from serving.settings import ServingSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| `(?P<default>[^`]*)` \| (?P<unit>[^|]+) \| (?P<meaning>[^|]+) \|$", re.M)
ROWS = {found["name"]: found for found in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
SETTINGS = {f"ALGOMART_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
NODE = {field.name: field.default for field in fields(ServingSettings) if field.name not in Settings.model_fields}


def written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", [*SETTINGS, *NODE])
def test_a_setting_is_in_the_page_with_its_default_a_unit_and_a_meaning(name: str) -> None:
    row = ROWS[name]
    assert row["default"] == written((SETTINGS | NODE)[name])
    assert row["unit"].strip()
    assert row["meaning"].strip()


def test_the_page_names_no_setting_that_is_not_there() -> None:
    assert set(ROWS) == set(SETTINGS) | set(NODE)


def test_what_a_node_shares_with_the_market_has_one_default() -> None:
    """So that a node on its own behaves as the market's does."""
    shared = [field for field in fields(ServingSettings) if field.name in Settings.model_fields]
    assert {field.name: field.default for field in shared} == {
        field.name: Settings.model_fields[field.name].default for field in shared
    }
