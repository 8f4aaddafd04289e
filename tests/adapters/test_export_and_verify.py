"""Exports of estimators and networks answer as the originals; a graph that does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapters import evaluate, export, thresholds, verify
from model_store.errors import Refusal

random = np.random.default_rng(5)
X = np.round(random.normal(0, 10, (300, 6)), 1).astype(np.float32)
Y = X[:, 0] * 2 - X[:, 1] + np.where(X[:, 2] > 0, 5, 0)
KINDS = (Y.mean() < Y).astype(int) + (Y.mean() + 10 < Y)


def estimators() -> list[Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
        HistGradientBoostingRegressor(max_iter=20, random_state=0),
        RandomForestClassifier(10, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        make_pipeline(StandardScaler(), Ridge()),
        make_pipeline(StandardScaler(), KNeighborsClassifier(3)),
        make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=30, random_state=0)),
    ]


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("place", range(7))
def test_an_estimators_graph_answers_as_the_estimator(place: int, tmp_path: Path) -> None:
    estimator = estimators()[place]
    classes = hasattr(estimator, "predict_proba")
    estimator.fit(X, KINDS if classes else Y)
    graph = export.sklearn_graph(estimator, X.shape[1])
    output = "probabilities" if classes else "value"
    assert [value.name for value in graph.graph.output] == [output]
    domains = [entry.domain for entry in graph.opset_import]
    assert len(domains) == len(set(domains))
    answers = estimator.predict_proba(X) if classes else estimator.predict(X).reshape(-1, 1)
    found = verify.verify_graph(saved(graph, tmp_path), {"features": X}, {output: answers})
    assert found[output].rows == len(X)
    assert found[output].max_rel < 1e-4


def test_a_networks_graph_takes_any_batch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, 2))
    x = random.normal(size=(7, 2, 10)).astype(np.float32)
    graph = export.torch_graph(network, torch.from_numpy(x[:2]), ["signal"], ["logits"])
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert verify.verify_graph(saved(graph, tmp_path), {"signal": x}, {"logits": expected})["logits"].agreement == 1.0


def test_a_graph_that_answers_differently_is_refused(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    model = Ridge().fit(X, Y)
    path = saved(export.sklearn_graph(model, X.shape[1]), tmp_path)
    with pytest.raises(Refusal) as refused:
        verify.verify_graph(path, {"features": X}, {"value": model.predict(X) + 1.0})
    assert refused.value.code == "PARITY_FAILED"


def test_verdicts_that_flip_are_refused_even_when_numbers_are_close(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=500).fit(X, KINDS > 0)
    path = saved(export.sklearn_graph(model, X.shape[1]), tmp_path)
    swapped = model.predict_proba(X)[:, ::-1]
    with pytest.raises(Refusal):
        verify.verify_graph(path, {"features": X}, {"probabilities": swapped}, tolerance=2.0)


@given(arrays(np.float64, 20, elements=st.floats(-1e30, 1e30)))
def test_a_floored_threshold_parts_float32_values_as_the_original_does(values: np.ndarray[Any, Any]) -> None:
    floored = thresholds.floor32(values)
    assert (floored <= values).all()
    x = np.concatenate([values.astype(np.float32), np.nextafter(values.astype(np.float32), np.float32(np.inf))])
    for threshold, below in zip(values, floored, strict=True):
        assert ((x.astype(np.float64) <= threshold) == (x <= np.float32(below))).all()


def test_miss_rate_is_read_at_the_overkill_allowed() -> None:
    hits = np.array([True] * 4 + [False] * 20)
    scores = np.array([0.95, 0.9, 0.5, 0.1, *np.linspace(0, 0.8, 20)])
    # One of twenty good rows may be refused: the threshold lies above the second highest good score, 0.758.
    assert evaluate.miss_rate_at_overkill(hits, scores, 0.05) == pytest.approx(0.5)
    assert np.isnan(evaluate.miss_rate_at_overkill(np.zeros(24, bool), scores))
