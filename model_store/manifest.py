"""The manifest: everything a bundle says about itself, as data.

A bundle is a folder (or a zip of one)::

    manifest.json      this
    model.onnx         the graph; external weights beside it, inside the bundle
    adapter.onnx_adapter   instead of model.onnx, where `adapter_of` names a base that it runs on
    card.md            Hub-style YAML front matter + text, zh and en
    golden/            sample inputs and expected outputs: golden/<n>/inputs.npz, golden/<n>/outputs.npz (named arrays)
    source/            optional: what adapting it needs (safetensors, tokenizer, recipe and fingerprint)
    <others>           tokenizer.json, fingerprint/rows.u64 … each named in `files`

Shapes use -1 for a dynamic dimension. Tensor types are the Open Inference Protocol's. The steps before and after the
graph stand in `model_store.step_specs`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model_store.schema import Model, OipType
from model_store.step_specs import PostStep, PreStep

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
Link = Literal["研发设计", "中试验证", "生产制造", "运维服务", "经营管理", "安全生产", "防灾减灾"]
Scenario = Literal[
    "仿真模拟", "匹配研发", "板材切割", "精密加工", "缺陷检测", "参数优化", "智能排产", "预测性维护", "智慧物流",
    "智慧能源管理", "工单/合同生成", "消费分析",
]  # fmt: skip


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
