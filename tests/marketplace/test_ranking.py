"""Ranking on a factory's own samples: fair, repeatable, and silent where the samples do not decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, mean_squared_error, roc_auc_score

from marketplace.choosing.ranking import agreement, auc, metric_of, rank, scorer

ROWS = 60
LABELS = ("bad", "ok", "worn")


def answers(seed: int, rows: int, wrong_share: float, actual: np.ndarray) -> np.ndarray:
    """`actual` with that share of the rows answered wrongly."""
    random = np.random.default_rng(seed)
    wrong = random.random(rows) < wrong_share
    others = np.array([LABELS[(LABELS.index(each) + 1) % len(LABELS)] for each in actual])
    return np.where(wrong, others, actual)


def truth(rows: int = ROWS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(LABELS), rows)


@pytest.mark.parametrize(
    ("kind", "labels", "positive", "metric"),
    [
        ("regression", (), None, ("rmse", False)),
        ("anomaly", (), None, ("auc", True)),
        ("classification", ("ok", "bad"), "bad", ("f1", True)),
        ("classification", LABELS, None, ("macro_f1", True)),
    ],
)
def test_each_task_has_its_metric(kind, labels, positive, metric) -> None:
    assert metric_of(kind, labels, positive) == metric


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 40))
def test_the_metrics_are_scikit_learn_s(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    everything = np.arange(rows)
    actual, said = random.choice(np.array(LABELS), rows), random.choice(np.array(LABELS), rows)
    present = sorted(set(actual))
    assert scorer("macro_f1", actual, said)(everything) == pytest.approx(
        f1_score(actual, said, labels=present, average="macro", zero_division=0)
    )
    one, other = random.normal(size=rows), random.normal(size=rows)
    assert scorer("rmse", one, other)(everything) == pytest.approx(mean_squared_error(one, other) ** 0.5)
    hits = random.random(rows) < 0.5
    if 0 < hits.sum() < rows:
        assert auc(hits, one) == pytest.approx(roc_auc_score(hits, one))


def test_an_auc_of_one_class_only_says_nothing() -> None:
    assert auc(np.ones(5, dtype=bool), np.arange(5.0)) == 0.5


@settings(max_examples=15, deadline=None)
@given(st.permutations(["a/one", "b/two", "c/three"]), st.integers(0, 1000))
def test_the_order_of_the_candidates_changes_nothing(order: list[str], seed: int) -> None:
    actual = truth()
    shares = {"a/one": 0.1, "b/two": 0.3, "c/three": 0.6}
    scores = {name: scorer("macro_f1", actual, answers(seed, ROWS, shares[name], actual)) for name in order}
    again = {name: scores[name] for name in sorted(order)}
    assert rank("macro_f1", True, scores, ROWS) == rank("macro_f1", True, again, ROWS)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_a_model_never_beats_itself(seed: int) -> None:
    actual = truth()
    said = answers(seed, ROWS, 0.3, actual)
    found = rank("macro_f1", True, {"a": scorer("macro_f1", actual, said), "b": scorer("macro_f1", actual, said)}, ROWS)
    assert not found.clear_winner
    assert all(row.tied for row in found.standings)
    assert found.standings[1].behind_low == found.standings[1].behind_high == 0


@pytest.mark.parametrize("rows", [60, 400])
def test_a_clearly_better_model_wins(rows: int) -> None:
    actual = truth(rows)
    scores = {name: scorer("macro_f1", actual, answers(7, rows, share, actual)) for name, share in
              (("good", 0.02), ("poor", 0.5))}  # fmt: skip
    found = rank("macro_f1", True, scores, rows)
    assert found.clear_winner
    assert [row.key for row in found.standings] == ["good", "poor"]
    assert found.standings[1].behind_low > 0


def test_few_rows_have_no_winner_however_large_the_lead() -> None:
    actual = truth(10)
    scores = {"good": scorer("macro_f1", actual, actual), "poor": scorer("macro_f1", actual, np.roll(actual, 1))}
    assert not rank("macro_f1", True, scores, 10).clear_winner


def test_the_smaller_error_comes_first_and_the_interval_holds_the_value() -> None:
    random = np.random.default_rng(3)
    actual = random.normal(size=ROWS)
    scores = {name: scorer("rmse", actual, actual + random.normal(scale=noise, size=ROWS)) for name, noise in
              (("rough", 2.0), ("fine", 0.1))}  # fmt: skip
    found = rank("rmse", False, scores, ROWS)
    assert [row.key for row in found.standings] == ["fine", "rough"]
    assert found.clear_winner
    assert all(row.low <= row.value <= row.high for row in found.standings)


def test_no_candidate_is_no_winner() -> None:
    found = rank("rmse", False, {}, ROWS)
    assert (found.standings, found.clear_winner) == ((), False)


def test_agreement_is_the_share_of_equal_answers_with_the_others() -> None:
    found = agreement({"a": np.array(["x", "y"]), "b": np.array(["x", "x"]), "c": np.array(["x", "y"])}, numeric=False)
    assert found == {"a": 0.75, "b": 0.5, "c": 0.75}
    assert agreement({"a": np.array(["x"])}, numeric=False) == {}


def test_a_single_candidate_has_won_against_nobody() -> None:
    actual = np.arange(ROWS, dtype=float)
    found = rank("rmse", False, {"only": scorer("rmse", actual, actual)}, ROWS)
    assert [row.key for row in found.standings] == ["only"]
    assert not found.clear_winner
