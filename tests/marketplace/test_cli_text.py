"""What the command line prints: nothing that is copied is cut, money is exact, verdicts are said."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from marketplace import cli_text

MODELS = ("pearl/machine-failure-forest", "dongzhi/machine-failure-boosting")


def printed(what: Any, width: int = 80) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(what, highlight=False)
    return captured.get()


def candidate(name: str, value: float | None = 0.9, warnings: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    price = {"gross_micro": 370_000_000, "voucher_micro": 123_333_333}
    measured = {} if value is None else {"value": value, "low": value - 0.1, "high": value + 0.05}
    return {"model": name, "version": 1, "latency_ms": {"p50": 0.08}, "price": price, "coverage": 1.0,
            "warnings": list(warnings), "tied_with_best": True} | measured  # fmt: skip


def choice(candidates: list[dict[str, Any]], *, clear: bool = False, **more: Any) -> dict[str, Any]:
    names = [f"{each['model']}@1" for each in candidates]
    ranking = {"metric": "f1", "higher_is_better": True, "clear_winner": clear, "best": names[0], "order": names}
    labelled = candidates[0].get("value") is not None
    result = {"candidates": candidates, "rankings": [ranking] if labelled else [], "label_column": "fail"}
    return {"sample_set_id": "smp_01M84VYBE76R1HK62B3M0EMVS2", "result": result | more}


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


@settings(deadline=None)
@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_micro_fen_are_shown_exactly(micro: int) -> None:
    assert Decimal(cli_text.fen_of_micro(micro).replace(",", "")) * 1_000_000 == micro


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_an_error_bar_holds_its_point_between_its_ends(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    bar = cli_text.interval(value, low, high, (0.0, 1.0))
    assert len(bar) == cli_text.INTERVAL_CELLS
    assert bar.strip()
    assert bar.count("●") == 1
    assert "├" not in bar[bar.index("●") + 1 :]
    assert "┤" not in bar[: bar.index("●")]


@pytest.mark.parametrize("width", [80, 200])
def test_a_ranking_says_that_there_is_no_clear_winner_and_what_each_costs(width: int) -> None:
    text = printed(cli_text.choice(choice([candidate(name) for name in MODELS])), width)
    assert "No clear winner" in text
    assert all(name in text for name in MODELS)
    assert "¥3.70" in text
    assert "¥1.23" in text


def test_a_clear_winner_is_named() -> None:
    done = choice([candidate(MODELS[0]), candidate(MODELS[1], 0.5)], clear=True)
    assert f"clear winner: {MODELS[0]}@1" in printed(cli_text.choice(done))


def test_samples_without_labels_show_no_accuracy() -> None:
    text = printed(cli_text.choice(choice([candidate(name, None) for name in MODELS])))
    assert "agreement" in text
    assert "f1" not in text


def test_the_same_warning_is_said_once_with_all_it_is_about() -> None:
    seen = {"code": "SAMPLES_TRAINED_ON", "zh": "训练过", "en": "were trained on"}
    text = printed(cli_text.choice(choice([candidate(name, warnings=(seen,)) for name in MODELS])), 200)
    assert text.count("were trained on") == 1
    assert f"({MODELS[0]}, {MODELS[1]})" in text


def test_a_choice_ends_with_a_command_that_adapts_the_best_to_the_same_samples() -> None:
    first = {"recipe": "tabular_calibrate", "model": MODELS[0], "title_en": "Calibrate", "minutes": 0.3}
    text = printed(cli_text.choice(choice([candidate(MODELS[0])], adapt_first=[first])), 200)
    assert f"algomart adapt tabular_calibrate --model {MODELS[0]} --sample-set smp_01M84VYBE76R1HK62B3M0EMVS2" in text


def test_the_words_follow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert "没有明显的赢家" in printed(cli_text.choice(choice([candidate(name) for name in MODELS])))


@pytest.mark.parametrize("width", [80, 200])
def test_ids_are_never_cut(width: int) -> None:
    usage_id = "01M84VRQD1YFV5Z2E4K4X9HJQ2"
    row = {"occurred_at_ms": 1_795_459_669_409, "usage_id": usage_id, "model": f"{MODELS[1]}@1",
           "amount_micro": 370_000, "lease_kind": "subsidised", "ratio_num": 1, "ratio_den": 3,
           "status": "ok"}  # fmt: skip
    text = printed(cli_text.usage({"items": [row], "total": 1}), width)
    assert usage_id in text
    assert "0.37" in text
    assert "11-24 02:47:49" in text


def test_the_review_queue_names_each_version_by_its_number() -> None:
    version = {"version_id": "ver_01", "version": 3, "state": "in_review", "manifest": {"name": "dongzhi/cutting"}}
    waiting = {
        "id": "rev_01M8504W15",
        "name": "dongzhi/cutting",
        "version": version,
        "state": "open",
        "age_ms": 5_400_000,
    }
    told = printed(cli_text.reviews({"items": [waiting], "total": 1}))
    assert "dongzhi/cutting@3" in told
    assert "ver_01" not in told
    assert "1.5" in told


def test_a_search_that_finds_nothing_says_so() -> None:
    assert "Nothing found" in printed(cli_text.models({"items": [], "total": 0, "facets": {}}))
