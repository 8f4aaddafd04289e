"""Commands that are imported when they are asked for are all there, and a mistyped one is answered as before."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from marketplace.cli import app
from marketplace.cli_elsewhere import GROUPS, OF_A_MARKET


@pytest.mark.parametrize("name", [*OF_A_MARKET, *GROUPS, "serve", "catalogue"])
def test_every_command_says_what_it_does(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"{name} [OPTIONS]" in " ".join(done.output.split())


def test_help_lists_every_command_once_and_in_order() -> None:
    group = get_command(app)
    names = group.list_commands(None)  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    assert names[:3] == ["login", "search", "publish"]
    assert names[-3:] == ["findings", "journal", "application"]
    said = CliRunner().invoke(app, ["--help"]).output
    assert all(f"│ {name} " in said for name in names)
    group.get_command(None, "operator")  # type: ignore[attr-defined]
    assert group.list_commands(None) == names  # type: ignore[attr-defined]


def test_an_unknown_command_is_answered_with_a_similar_one_of_a_module_not_imported_yet() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "marketplace.cli", "findngs", "list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "No such command 'findngs'" in done.stderr
    assert "'findings'" in done.stderr
