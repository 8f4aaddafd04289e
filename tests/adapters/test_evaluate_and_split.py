"""Metrics against scikit-learn, and splits that do what their names say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from adapters import calibration, evaluate, split
from adapters.samples import Samples
from model_store.errors import Unprocessable

random = np.random.default_rng(7)
HITS = random.random(200) < 0.3
SCORES = np.round(np.where(HITS, random.normal(1, 1, 200), random.normal(0, 1, 200)), 1)  # rounded: with ties


def test_auc_is_scikit_learns_also_with_ties() -> None:
    assert evaluate.auc(HITS, SCORES) == pytest.approx(roc_auc_score(HITS, SCORES))


def test_macro_f1_is_scikit_learns() -> None:
    actual = random.choice(["a", "b", "c"], 150).tolist()
    said = random.choice(["a", "b", "c"], 150).tolist()
    found = evaluate.classification_metrics(
        actual, said, np.full((150, 3), 1 / 3), ["a", "b", "c"], positive=None, seed=0
    )
    assert found[0].name == "macro_f1"
    assert found[0].value == pytest.approx(f1_score(actual, said, average="macro"))
    assert found[0].low < found[0].value < found[0].high


def test_a_label_that_the_model_never_saw_counts_as_a_mistake() -> None:
    found = evaluate.classification_metrics(["a", "new"], ["a", "b"], np.eye(2), ["a", "b"], positive=None, seed=0)
    assert next(metric.value for metric in found if metric.name == "accuracy") == 0.5


def test_too_few_rows_have_no_interval() -> None:
    found = evaluate.regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]), seed=0)
    assert found[0].low is None


def test_miss_rate_and_overkill_are_shares_of_their_own_side() -> None:
    odd, flagged = np.array([True] * 10 + [False] * 40), np.array([True] * 9 + [False] + [True] * 4 + [False] * 36)
    found = {metric.name: metric for metric in evaluate.anomaly_metrics(odd, flagged * 1.0, flagged, seed=0)}
    assert found["miss_rate"].value == pytest.approx(0.1)
    assert found["overkill"].value == pytest.approx(0.1)
    assert next(iter(found)) == "anomaly_auc"


@given(st.lists(st.sampled_from("abc"), min_size=12, max_size=80), st.integers(0, 1000))
def test_a_split_by_labels_keeps_each_label_on_both_sides(labels: list[str], seed: int) -> None:
    train, test = split.split_by_labels(labels, seed, 0.3)
    assert sorted([*train, *test]) == list(range(len(labels)))
    for name in set(labels):
        if labels.count(name) > 1:
            assert name in {labels[i] for i in train}
            assert name in {labels[i] for i in test}


def test_groups_are_never_on_both_sides() -> None:
    groups = [f"engine {i // 10}" for i in range(100)]
    train, test = split.split_by_groups(groups, 3, 0.3)
    assert not {groups[i] for i in train} & {groups[i] for i in test}
    assert len(test) == 30


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    rows = Samples([{"x": i} for i in range(40)], values=np.arange(40.0))
    first, again, other = (split.split_samples(rows, seed, 0.25).test.tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_the_last_rows_of_every_group_are_held_out() -> None:
    groups = ["a"] * 10 + ["b"] * 20
    rows = Samples([{"x": i} for i in range(30)], values=np.arange(30.0), groups=groups)
    found = split.split_samples(rows, 0, 0.3, ordered=True, whole_groups=False)
    assert found.test.tolist() == [7, 8, 9, *range(24, 30)]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(Unprocessable, match="SAMPLES_TOO_FEW"):
        split.split_samples(Samples([{"x": 1}] * 6, values=np.zeros(6)), 0, 0.25)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.floats(0, 0.5))
def test_a_threshold_never_refuses_more_good_rows_than_allowed(scores: list[float], overkill: float) -> None:
    threshold = calibration.threshold_at_overkill(np.array(scores), overkill)
    assert (np.array(scores) >= threshold).mean() <= overkill + 1e-12


def test_platt_recovers_a_known_sigmoid() -> None:
    logits = random.normal(0, 2, 20_000)
    hits = random.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    assert calibration.fit_platt(logits, hits) == pytest.approx((0.5, -1.0), abs=0.06)


def test_temperature_recovers_overconfidence() -> None:
    logits = random.normal(0, 1.5, (20_000, 4))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = (chances.cumsum(1) > random.random((20_000, 1))).argmax(1)
    assert calibration.fit_temperature(logits * 3, wanted) == pytest.approx(3.0, rel=0.05)


def test_isotonic_knots_rise_and_are_bounded() -> None:
    x = random.random(5_000)
    knots_x, knots_y = calibration.fit_isotonic(x, (random.random(5_000) < x**2).astype(float), 0.0, 1.0)
    assert len(knots_x) <= calibration.MAX_KNOTS
    assert (np.diff(knots_x) > 0).all()
    assert (np.diff(knots_y) >= 0).all()
