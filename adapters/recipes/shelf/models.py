"""Ways to learn from columns with scikit-learn, each as a `fit` of an entrant. One thread, seeded, grown on float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters import export, linear
from adapters.recipes.shelf.family import Arrays, Lesson, Trained

Fit = Callable[[Lesson], Trained]
Floats = npt.NDArray[np.floating[Any]]
FOLDS = 5


def logistic(strength: float = 1.0, balanced: bool = False, power: bool = False, exact: bool = False) -> Fit:
    """Logistic regression on standardised columns, as one Gemm. `power`: with squares and products of the columns.

    `exact`: to the optimum itself, in double precision, so that every processor learns the same model; where it stops
    short, the last rounding decides which rows it gets right.
    """

    def make(lesson: Lesson) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        head = LogisticRegression(
            C=strength, max_iter=5000, class_weight="balanced" if balanced else None, random_state=lesson.seed,
            **({"solver": "newton-cholesky", "tol": 1e-9} if exact else {}),
        )  # fmt: skip
        steps = [StandardScaler()]
        if power:
            steps += [PolynomialFeatures(2, include_bias=False), StandardScaler()]
        return make_pipeline(*steps, head)

    return _estimator(
        make, {"C": strength, "balanced": balanced, "squares": power}, np.float64 if exact else np.float32
    )


def forest(trees: int = 60, depth: int | None = 12, leaf: int = 2) -> Fit:
    """A random forest."""

    def make(lesson: Lesson) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        kind = RandomForestClassifier if lesson.labels else RandomForestRegressor
        return kind(n_estimators=trees, max_depth=depth, min_samples_leaf=leaf, random_state=lesson.seed, n_jobs=1)

    return _estimator(make, {"trees": trees, "depth": depth, "leaf": leaf})


def boosting(rounds: int = 150, rate: float = 0.08, leaves: int = 15, least: int = 20, l2: float = 0.0) -> Fit:
    """Histogram gradient boosting."""

    def make(lesson: Lesson) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if lesson.labels else HistGradientBoostingRegressor
        return kind(
            max_iter=rounds, learning_rate=rate, max_leaf_nodes=leaves, min_samples_leaf=least,
            l2_regularization=l2, early_stopping=False, random_state=lesson.seed,
        )  # fmt: skip

    return _estimator(make, {"rounds": rounds, "rate": rate, "leaves": leaves, "least": least, "l2": l2})


def perceptron(hidden: tuple[int, ...] = (32, 16), epochs: int = 300, alpha: float = 1e-4, rate: float = 3e-3) -> Fit:
    """A small neural network on standardised columns; a value is learnt standardised and scaled back in the graph."""

    def make(lesson: Lesson) -> Any:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        kind = MLPClassifier if lesson.labels else MLPRegressor
        network = kind(
            hidden_layer_sizes=hidden, max_iter=epochs, alpha=alpha, learning_rate_init=rate, batch_size=128,
            early_stopping=True, validation_fraction=0.12, n_iter_no_change=25, random_state=lesson.seed,
        )  # fmt: skip
        return make_pipeline(StandardScaler(), network)

    return _estimator(make, {"hidden": list(hidden), "epochs": epochs, "alpha": alpha, "rate": rate})


def neighbours(count: int = 5) -> Fit:
    """The nearest training rows, weighted by distance. The graph carries the rows themselves: public data only."""

    def make(lesson: Lesson) -> Any:
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        kind = KNeighborsClassifier if lesson.labels else KNeighborsRegressor
        return make_pipeline(StandardScaler(), kind(n_neighbors=count, weights="distance"))

    return _estimator(make, {"neighbours": count})


def ridge(strength: float = 1.0, power: bool = False) -> Fit:
    """Ridge regression on standardised columns; `power`: with their squares and products."""

    def make(_: Lesson) -> Any:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        steps = [StandardScaler()]
        if power:
            steps += [PolynomialFeatures(2, include_bias=False), StandardScaler()]
        return make_pipeline(*steps, Ridge(alpha=1.0 / strength))

    return _estimator(make, {"strength": strength, "squares": power})


def _estimator(
    make: Callable[[Lesson], Any], params: dict[str, Any], within: type[np.floating[Any]] = np.float32
) -> Fit:
    """`within`: what is calculated in; the values are those of float32, as the graph will get them, in any case."""

    def fit(lesson: Lesson) -> Trained:
        x = lesson.x.astype(np.float32).astype(within)
        if lesson.labels:
            trained = _trained(make(lesson).fit(x, lesson.classes), lesson, params)
            if lesson.positive is not None:
                trained.threshold = best_threshold(make, lesson)
            return trained
        wanted = lesson.samples.values
        model = make(lesson)
        if hasattr(model, "steps") and hasattr(model[-1], "hidden_layer_sizes"):
            return _trained(_fit_scaled(model, x, wanted), lesson, params)
        return _trained(model.fit(x, wanted), lesson, params)

    return fit


def _fit_scaled(model: Any, x: Floats, wanted: Floats) -> Any:
    """A perceptron learns the standardised value; its last layer then takes the scale back, exactly."""
    mean, scale = float(wanted.mean()), float(wanted.std())
    model.fit(x, (wanted - mean) / scale)
    network = model[-1]
    network.coefs_[-1] = network.coefs_[-1] * scale
    network.intercepts_[-1] = network.intercepts_[-1] * scale + mean
    return model


def _trained(model: Any, lesson: Lesson, params: dict[str, Any]) -> Trained:
    graph = export.sklearn_graph(model, lesson.x.shape[1], lesson.tensor)
    return Trained(graph, _answers(model, "probabilities" if lesson.labels else "value"), params)


def _answers(model: Any, output: str) -> Callable[[Arrays], Arrays]:
    def answer(inputs: Arrays) -> Arrays:
        (x,) = inputs.values()
        return {output: linear.predict(model, x.astype(np.float32)).astype(np.float32)}

    return answer


def best_threshold(make: Callable[[Lesson], Any], lesson: Lesson) -> float:
    """The score of the positive class that gives the best F1 on training rows, each scored by a model of the others.

    Five stratified folds; the threshold lies between two scores, so that rounding does not move a row across it.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    assert lesson.positive is not None
    column = lesson.labels.index(lesson.positive)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=lesson.seed)
    x = lesson.x.astype(np.float32)
    scores = cross_val_predict(make(lesson), x, lesson.classes, cv=folds, method="predict_proba")[:, column]
    return threshold_of(scores, lesson.classes == column)


def threshold_of(scores: Floats, hits: npt.NDArray[np.bool_]) -> float:
    """Where F1 is best when everything at or above is a hit."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(scores) + 1) + hits.sum())
    distinct = np.append(np.diff(scores[order]) < 0, True)
    best = int(np.argmax(np.where(distinct, f1, 0.0)))
    below = float(scores[order][best + 1]) if best + 1 < len(scores) else 0.0
    return round((float(scores[order][best]) + below) / 2, 6)
