"""The manifest: everything a bundle says about itself, as data.

A bundle is a folder (or a zip of one)::

    manifest.json      this
    model.onnx         the graph; external weights beside it, inside the bundle
    adapter.onnx_adapter   instead of model.onnx, where `adapter_of` names a base that it runs on
    card.md            Hub-style YAML front matter + text, zh and en
    golden/            sample inputs and expected outputs: golden/<n>/inputs.npz, golden/<n>/outputs.npz (named arrays)
    source/            optional: what adapting it needs (safetensors, tokenizer, recipe and fingerprint)
    <others>           tokenizer.json, fingerprint/rows.u64 … each named in `files`

Shapes use -1 for a dynamic dimension. Tensor types are the Open Inference Protocol's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Tier = Literal["base", "vertical", "small", "app"]
Modality = Literal["tabular", "series", "image", "text", "tensor"]
Task = Literal[
    "tabular-classification",
    "tabular-regression",
    "series-classification",
    "series-regression",
    "series-forecasting",
    "text-classification",
    "image-classification",
    "anomaly-detection",
    "embedding",
    "tensor",  # a bare graph: tensors in, tensors out, nothing named
]
Relation = Literal["adapter", "finetune", "quantized", "distilled", "calibrated", "retrained"]
# Relations that reuse the parent's weights; voucher eligibility passes only over these (vouchers.md).
WEIGHT_REUSING_RELATIONS: frozenset[str] = frozenset({"adapter", "finetune", "quantized", "distilled", "calibrated"})
Adaptable = Literal["none", "calibrate", "head", "lora"]
OipType = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
Link = Literal["研发设计", "中试验证", "生产制造", "运维服务", "经营管理", "安全生产", "防灾减灾"]
Scenario = Literal[
    "仿真模拟", "匹配研发", "板材切割", "精密加工", "缺陷检测", "参数优化", "智能排产", "预测性维护", "智慧物流",
    "智慧能源管理", "工单/合同生成", "消费分析",
]  # fmt: skip


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class TensorSpec(Model):
    """One named tensor of the graph. `shape` uses -1 for a dynamic dimension; the batch dimension is the first."""

    name: str
    dtype: OipType
    shape: list[int]
    unit: str | None = None
    title_zh: str = ""
    title_en: str = ""


class Feature(Model):
    """One named thing that a factory has: a column, an image, a text, a series channel.

    `kind` number/integer → one cell; category → one of `categories`; text → a string; image → an encoded picture;
    series → a list of numbers. `aliases` are other column headings (zh and en) that mean the same.
    """

    name: str
    kind: Literal["number", "integer", "category", "text", "image", "series"]
    title_zh: str = ""
    title_en: str = ""
    unit: str | None = None
    required: bool = True
    default: float | str | None = None
    minimum: float | None = None
    maximum: float | None = None
    categories: list[str] = Field(default_factory=list)
    length: int | None = None  # series: samples expected (None: any, windowed)
    aliases: list[str] = Field(default_factory=list)
    example: Any = None  # prefilled in the try-it form; a generated value where a real row may not be shown


class Label(Model):
    """One class. `name` is what the API answers and what a sample's label column holds; aliases are accepted there
    too.
    """

    name: str
    title_zh: str = ""
    title_en: str = ""
    aliases: list[str] = Field(default_factory=list)


class Target(Model):
    """What the model predicts, as a sample's column: its heading, aliases, unit."""

    name: str
    kind: Literal["number", "category", "anomaly"]
    title_zh: str = ""
    title_en: str = ""
    unit: str | None = None
    aliases: list[str] = Field(default_factory=list)
    positive: str | None = None  # binary and anomaly tasks: the label that counts as a hit (a fault)


# --- processing: a closed list. model_store.processing runs exactly these, everywhere. -----------------------------


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

# --- facts around the graph ----------------------------------------------------------------------------------------


class Parent(Model):
    name: str  # vendor/name
    version: int
    relation: Relation
    digest: str = ""  # the parent bundle's digest, verified at registration


class AdapterOf(Model):
    """The base that an adapter bundle runs on. `ranks`: of each low-rank site that it has parameters for."""

    name: str  # vendor/name
    version: int
    digest: str  # the base bundle's
    ranks: dict[str, int] = Field(default_factory=dict)


class Filing(Model):
    genai_service: Literal["none", "internal", "public"] = "none"
    filing_type: Literal["备案", "登记"] | None = None
    filing_no: str | None = None
    base_model_filing_no: str | None = None


class DataSource(Model):
    title: str
    url: str = ""
    licence: str
    rows: int | None = None
    use: Literal["trained", "evaluated", "reference"]
    split_fingerprint: str = ""  # SHA-256 over the sorted row hashes of the split


class Metric(Model):
    """A measured metric with its 95% interval on `rows` rows never trained on."""

    name: str  # accuracy, macro_f1, f1, auc, rmse, mae, r2, mse, anomaly_auc …
    value: float
    low: float | None = None
    high: float | None = None
    rows: int
    split: str = "test"
    higher_is_better: bool = True
    source: Literal["vendor", "market"] = "vendor"


class CostModel(Model):
    """Measured at inspection: latency_ms(n rows) = a_ms_per_row * n + b_ms, on one thread of `cpu`."""

    a_ms_per_row: float
    b_ms: float
    load_ms: float
    private_bytes: int
    cpu: str = ""
    ort_version: str = ""


class FeatureReference(Model):
    """Distribution of one feature in the training data: for coverage, drift and outliers. 11 quantiles for numbers."""

    kind: Literal["number", "category", "image", "text", "series"]
    count: int
    missing: int = 0
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    quantiles: list[float] = Field(default_factory=list)
    frequencies: dict[str, float] = Field(default_factory=dict)


class Batching(Model):
    dynamic: bool = True  # the first dimension of every tensor is the batch and may vary
    max_rows: int = 256


class BundleFile(Model):
    sha256: str
    bytes: int


class Manifest(Model):
    """See the module's text. `name` is vendor/name; the version number is the market's, not the bundle's."""

    schema_version: Literal[1] = 1
    name: str
    title_zh: str = ""
    title_en: str = ""
    summary_zh: str = ""
    summary_en: str = ""
    tier: Tier = "small"
    task: Task = "tensor"
    modality: Modality = "tensor"
    chains: list[str] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)
    scenarios: list[Scenario] = Field(default_factory=list)
    keywords: list[str] = Field(default_factory=list)
    licence: str = ""
    family: str = ""  # models of one family take the same features and predict the same target
    method: str = ""  # "gradient boosting", "logistic regression", "1-D convolution" …
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    features: list[Feature] = Field(default_factory=list)
    target: Target | None = None
    labels: list[Label] = Field(default_factory=list)
    pre: list[PreStep] = Field(default_factory=list)
    post: list[PostStep] = Field(default_factory=list)
    batching: Batching = Field(default_factory=Batching)
    variation: Literal["fp32", "fp16", "int8", "edge"] = "fp32"
    parent: Parent | None = None
    adapter_of: AdapterOf | None = None  # the bundle holds an adapter instead of a graph
    adaptable: Adaptable = "none"
    filing: Filing = Field(default_factory=Filing)
    data: list[DataSource] = Field(default_factory=list)
    metrics: list[Metric] = Field(default_factory=list)
    cost: CostModel | None = None
    reference: dict[str, FeatureReference] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)  # name, params, seed, package versions
    files: dict[str, BundleFile] = Field(default_factory=dict)  # every file but manifest.json itself
    golden_rtol: float = 1e-3
    golden_atol: float = 1e-5

    @property
    def descends_from(self) -> Parent | None:
        """The declared parent; of an adapter its base, whatever else it may say."""
        of = self.adapter_of
        if of is None:
            return self.parent
        return Parent(name=of.name, version=of.version, relation="adapter", digest=of.digest)
