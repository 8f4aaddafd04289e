"""The command line against no market at all: refusals with a remedy, and a key that stays with its market."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marketplace.cli import app
from marketplace.cli_client import open_client

HOME = "http://127.0.0.1:8000"


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("ALGOMART_URL", raising=False)
    monkeypatch.delenv("ALGOMART_KEY", raising=False)
    (tmp_path / "algomart").mkdir()
    (tmp_path / "algomart" / "login.json").write_text(json.dumps({"url": HOME, "key": "am_saved"}), encoding="utf-8")


@pytest.mark.usefixtures("remembered")
def test_a_market_that_does_not_answer_is_said_with_the_remedy_and_no_traceback() -> None:
    done = CliRunner().invoke(app, ["search", "轴承", "--url", "http://127.0.0.1:9", "--key", "k"])
    assert done.exit_code == 1
    assert "MARKET_UNREACHABLE" in done.stderr
    assert "algomart up" in done.stderr
    assert isinstance(done.exception, SystemExit)


@pytest.mark.usefixtures("remembered")
def test_a_remembered_key_goes_to_its_own_market_only() -> None:
    assert open_client(None, None).key == "am_saved"
    assert open_client(HOME + "/", None).key == "am_saved"
    assert open_client("http://127.0.0.1:9", None).key == ""
