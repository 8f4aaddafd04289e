"""What the shelf is made of: a family is one schema on one public data set; its entrants compete on it.

Everything here is data and small functions; training libraries are imported only inside an entrant's `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from adapters.datasets import Source
from adapters.samples import Samples
from model_store.manifest import Adaptable, Feature, Label, Link, Modality, Scenario, Target, Task
from model_store.step_specs import PostStep, PreStep

SEED = 20250205  # the day the policy was issued
Arrays = dict[str, npt.NDArray[Any]]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Price:
    """What a demonstration vendor asks, in micro-fen (1 fen = 1,000,000) per unit; of a private derivative too."""

    unit: Literal["calls", "rows", "images"]
    micro_per_unit: int
    derivative_micro_per_unit: int


@dataclass(slots=True)
class Lesson:
    """What an entrant learns from: encoded training tensors, targets, and what must stay together in validation."""

    inputs: Arrays
    samples: Samples
    labels: list[str]  # class names in the order of the answer's columns; [] for a value
    positive: str | None
    seed: int = SEED

    @property
    def x(self) -> npt.NDArray[Any]:
        """The one input tensor."""
        (tensor,) = self.inputs.values()
        return tensor

    @property
    def tensor(self) -> str:
        (name,) = self.inputs
        return name

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """Each row's label as its place in `labels`."""
        place = {name: index for index, name in enumerate(self.labels)}
        return np.array([place[name] for name in self.samples.labels], np.int64)


@dataclass(slots=True)
class Trained:
    """The exported graph, and the original behind it: `answer(inputs)` gives the same outputs, by name."""

    graph: onnx.ModelProto
    answer: Callable[[Arrays], Arrays]
    params: dict[str, Any] = field(default_factory=dict)
    post: list[PostStep] | None = None  # where the answer needs more than the family's own post-processing
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Entrant:
    """One model of a family. `pre`: its own pre-processing where it is not the family's."""

    name: str  # vendor/slug
    title_zh: str
    title_en: str
    summary_zh: str
    summary_en: str
    method: str
    price: Price
    fit: Callable[[Lesson], Trained]
    pre: Callable[[Samples], list[PreStep]] | None = None
    adaptable: Adaptable = "calibrate"
    demo_filing: bool = False

    @property
    def vendor(self) -> str:
        return self.name.partition("/")[0]

    @property
    def slug(self) -> str:
        return self.name.partition("/")[2]


@dataclass(slots=True)
class Parts:
    """Rows to learn from and rows to measure on. `scored`: which of the test rows count (None: all of them)."""

    train: Samples
    test: Samples
    scored: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """One paragraph in both languages."""

    zh: str
    en: str


@dataclass(frozen=True, slots=True)
class Family:
    """A schema, its data, how rows were parted, what it is for and where it ends."""

    slug: str
    task: Task
    modality: Modality
    features: Sequence[Feature]
    target: Target | None
    labels: Sequence[Label]
    source: Source
    licence: str
    scenarios: Sequence[Scenario]
    links: Sequence[Link]
    chains: Sequence[str]
    keywords: Sequence[str]
    load: Callable[[Path], Parts]
    pre: Callable[[Samples], list[PreStep]]
    generate: Callable[[np.random.Generator, int, Samples], list[Row]]  # made-up rows: (random, count, training rows)
    split: Text
    use: Text
    limits: Text
    entrants: Sequence[Entrant]
    main_metric: str = ""


def generated_columns(features: Sequence[Feature]) -> Callable[[np.random.Generator, int, Samples], list[Row]]:
    """Made-up rows of a table: each cell drawn by itself from the training rows' 5% to 95% range, so nobody's row."""

    def generate(random: np.random.Generator, count: int, train: Samples) -> list[Row]:
        rows: list[Row] = [{} for _ in range(count)]
        for feature in features:
            cells = [row[feature.name] for row in train.rows]
            if feature.kind == "category":
                for row in rows:
                    row[feature.name] = str(random.choice(feature.categories))
                continue
            low, high = (float(bound) for bound in np.quantile(np.array(cells, np.float64), (0.05, 0.95)))
            for row, cell in zip(rows, random.uniform(low, high, count), strict=True):
                row[feature.name] = float(f"{cell:.4g}")
        return rows

    return generate


def bounds_of(features: Sequence[Feature], bounds: Mapping[str, tuple[float, float]]) -> list[Feature]:
    """The features with their lawful range."""
    return [
        feature.model_copy(update={"minimum": bounds[feature.name][0], "maximum": bounds[feature.name][1]})
        if feature.name in bounds
        else feature
        for feature in features
    ]
