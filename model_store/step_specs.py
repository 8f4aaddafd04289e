"""The steps before and after a graph, as a manifest declares them: a closed list.

`model_store.processing` runs exactly these, everywhere.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model_store.schema import Model, OipType


class Columns(Model):
    """Stack `features` (numbers, or categories already mapped) in order into `tensor` [N, len(features)]."""

    op: Literal["columns"] = "columns"
    features: list[str]
    tensor: str
    dtype: OipType = "FP32"


class Categories(Model):
    """Replace category text by a number. `unknown` None: an unknown category is an error naming the lawful ones."""

    op: Literal["categories"] = "categories"
    feature: str
    mapping: dict[str, float]
    unknown: float | None = None


class Impute(Model):
    """Missing cells of these features become the value given."""

    op: Literal["impute"] = "impute"
    values: dict[str, float]


class ScaleTensor(Model):
    """`tensor` → (tensor - mean) / scale, broadcast over the last axis (over channels for [N, C, T] when `axis` is
    1).
    """

    op: Literal["scale"] = "scale"
    tensor: str
    mean: list[float]
    scale: list[float]
    axis: int = -1


class Series(Model):
    """Channels given as lists → `tensor` [N, C, size]: the last `size` samples; shorter ones left-padded or refused."""

    op: Literal["series"] = "series"
    features: list[str]
    tensor: str
    size: int
    pad: Literal["refuse", "edge", "zero"] = "refuse"
    dtype: OipType = "FP32"


class Window(Model):
    """Rows of one `group` ordered by `order` → `tensor` [N, C, size], one window ending at each row (CSV series)."""

    op: Literal["window"] = "window"
    features: list[str]
    tensor: str
    size: int
    group: str | None = None
    order: str | None = None
    pad: Literal["refuse", "edge", "zero"] = "edge"
    dtype: OipType = "FP32"


class Spectrum(Model):
    """`tensor` [N, C, T] → log1p of the amplitude spectrum averaged in `bins` bands, [N, C * bins]."""

    op: Literal["spectrum"] = "spectrum"
    tensor: str
    bins: int


class DecodeImage(Model):
    """An encoded picture → `tensor` [N, C, H, W] float32 in 0..1: decoded, converted, resized (bilinear, antialias)."""

    op: Literal["image"] = "image"
    feature: str
    tensor: str
    mode: Literal["RGB", "L"] = "RGB"
    width: int
    height: int
    fit: Literal["stretch", "center_crop", "letterbox"] = "stretch"


class Normalise(Model):
    """`tensor` [N, C, …] → (tensor - mean[c]) / std[c]."""

    op: Literal["normalise"] = "normalise"
    tensor: str
    mean: list[float]
    std: list[float]


class Tokenise(Model):
    """Text → the tensors of a tokenizer.json in the bundle: input_ids, attention_mask, token_type_ids (INT64)."""

    op: Literal["tokenise"] = "tokenise"
    feature: str
    file: str = "tokenizer.json"
    max_length: int = 128
    tensors: list[Literal["input_ids", "attention_mask", "token_type_ids"]]


class HashNgrams(Model):
    """Text → `tensor` [N, buckets] FP32: L2-normalised log(1+count) of hashed (CRC-32) n-grams.

    `unit` char: every run of low..high characters of the lower-cased, NFKC-normalised text; word: of its words.
    """

    op: Literal["hash_ngrams"] = "hash_ngrams"
    feature: str
    tensor: str
    unit: Literal["char", "word"] = "char"
    low: int = 1
    high: int = 3
    buckets: int = 4096


class Strings(Model):
    """Text → `tensor` [N, 1] BYTES, for graphs that take strings."""

    op: Literal["strings"] = "strings"
    feature: str
    tensor: str


PreStep = Annotated[
    Columns | Categories | Impute | ScaleTensor | Series | Window | Spectrum | DecodeImage | Normalise | Tokenise
    | HashNgrams | Strings,
    Field(discriminator="op"),
]  # fmt: skip


class Softmax(Model):
    op: Literal["softmax"] = "softmax"
    tensor: str
    temperature: float = 1.0


class Sigmoid(Model):
    """sigmoid(a * x + b): also Platt calibration."""

    op: Literal["sigmoid"] = "sigmoid"
    tensor: str
    a: float = 1.0
    b: float = 0.0


class Affine(Model):
    """x * scale + offset: undoes a scaled target."""

    op: Literal["affine"] = "affine"
    tensor: str
    scale: float = 1.0
    offset: float = 0.0


class Clip(Model):
    op: Literal["clip"] = "clip"
    tensor: str
    low: float | None = None
    high: float | None = None


class Isotonic(Model):
    """Piecewise-linear map through (x[i], y[i]): isotonic calibration of a score or a value."""

    op: Literal["isotonic"] = "isotonic"
    tensor: str
    x: list[float]
    y: list[float]


class Take(Model):
    """`tensor` [N, D] → its first `columns` columns [N, columns]: where a graph has room for more classes than used."""

    op: Literal["take"] = "take"
    tensor: str
    columns: int = Field(ge=1)


class Classify(Model):
    """`tensor` [N, K] of probabilities (or [N] / [N, 1] of the positive one) → label, score, probabilities.

    With `threshold`, binary: positive where score >= threshold. `labels` in the tensor's order.
    """

    op: Literal["classify"] = "classify"
    tensor: str
    labels: list[str]
    threshold: float | None = None
    positive: str | None = None


class Value(Model):
    """`tensor` [N] or [N, 1] → value (number) under the target's name and unit."""

    op: Literal["value"] = "value"
    tensor: str
    decimals: int | None = None


class Anomaly(Model):
    """`tensor` [N] or [N, 1], higher is stranger → anomaly_score, is_anomaly (score >= threshold)."""

    op: Literal["anomaly"] = "anomaly"
    tensor: str
    threshold: float


class Vector(Model):
    """`tensor` [N, D] → embedding; `mean_pool` names the attention mask for [N, L, D]."""

    op: Literal["vector"] = "vector"
    tensor: str
    normalise: bool = True
    mean_pool: str | None = None


PostStep = Annotated[
    Take | Softmax | Sigmoid | Affine | Clip | Isotonic | Classify | Value | Anomaly | Vector, Field(discriminator="op")
]
