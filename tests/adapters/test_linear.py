"""Linear models as graphs: what scikit-learn answers, also on columns that would blow up."""

import numpy as np
import pytest

from adapters import linear, measure

random = np.random.default_rng(5)
X = random.normal(0, 1, (200, 6)).astype(np.float32)
X[:, 3] = 1e-31 * random.random(200)  # a dead neuron
X[:, 4] = 5_000 + 1e-4 * random.random(200)  # a sensor that only rounds
X[:, 5] = X[:, 5] * 1e-9  # a small unit that means something
LABELS = np.where(X[:, 0] + X[:, 5] * 1e9 > 0, "high", "low").tolist()


def test_columns_that_do_not_vary_get_no_weight_and_small_units_do() -> None:
    weights, bias = linear.head_weights(linear.fit(X, LABELS, 0))
    assert np.isfinite(weights).all()
    assert np.isfinite(bias).all()
    assert not weights[3:5].any()
    assert np.abs(weights[5]).max() > 1e8


def test_a_column_that_is_faint_beside_its_like_gets_no_weight_in_an_embedding() -> None:
    weights, _ = linear.head_weights(linear.fit(X, LABELS, 0, one_unit=True))
    assert not weights[3:].any()


@pytest.mark.parametrize("wanted", [LABELS, (X[:, 0] * 3 + 7).astype(np.float64), list("abcd") * 50])
def test_the_graph_answers_as_scikit_learn_does(wanted: object) -> None:
    model = linear.fit(X, wanted, 0)  # type: ignore[arg-type]
    (found,) = measure.run_model(linear.export(model, "x"), {"x": X}).values()
    np.testing.assert_allclose(found, linear.predict(model, X), rtol=1e-3, atol=1e-4)
