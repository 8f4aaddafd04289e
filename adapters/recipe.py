"""What a recipe is, what it is given and what it hands back. Importable without torch: `run` does the heavy imports.

A recipe is a module in `adapters/recipes/` that ends in `RECIPE = Recipe(…, run=run)`. Its `run(context)` reads top to
bottom: load → split → train → export → verify → evaluate beside the parent → bundle.

`context.data` is the folder of one sample set: `table.parquet` (the factory's own headings) or `images/<label>/<file>`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model_store.errors import BadInput, NotFound, Unprocessable
from model_store.manifest import Adaptable, Manifest, Metric, Modality, Relation, Task

if TYPE_CHECKING:
    from model_store.bundle import Bundle

RECIPE_NAMES = (
    "tabular_calibrate",
    "tabular_retrain",
    "text_ngrams",
    "text_lora",
    "image_head",
    "image_anomaly",
    "series_window",
    "series_anomaly",
    "quantise",
)
MAX_TEXT_CHARACTERS = 200
ParameterKind = Literal["integer", "number", "choice", "flag", "text"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a recipe. `minimum` and `maximum` are inclusive and bind integer and number only."""

    name: str
    kind: ParameterKind
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    zh: str = ""
    en: str = ""

    def check(self, value: Any) -> Any:
        """`value` as this parameter's type; `BadInput` PARAMETER_INVALID naming the field and its bounds."""
        if self.kind == "flag" and isinstance(value, bool):
            return value
        if self.kind == "choice" and value in self.choices:
            return value
        if self.kind == "text" and isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS:
            return value
        if self.kind in ("integer", "number") and (number := _number(value)) is not None:
            whole = self.kind == "number" or number == int(number)
            above = self.minimum is None or number >= self.minimum
            below = self.maximum is None or number <= self.maximum
            if whole and above and below:
                return int(number) if self.kind == "integer" else number
        raise BadInput(
            "PARAMETER_INVALID",
            zh=f"参数 {self.name} 的值 {str(value)[:60]!r} 无效",
            en=f"parameter {self.name} cannot be {str(value)[:60]!r}",
            remedy_zh=f"应为 {self.bounds}",
            remedy_en=f"it takes {self.bounds}",
            field=f"params.{self.name}",
            details={"bounds": self.bounds},
        )

    @property
    def bounds(self) -> str:
        """What is lawful, as text."""
        if self.kind == "flag":
            return "true | false"
        if self.kind == "choice":
            return " | ".join(self.choices)
        if self.kind == "text":
            return f"text ≤ {MAX_TEXT_CHARACTERS}"
        low = "-∞" if self.minimum is None else f"{self.minimum:g}"
        high = "∞" if self.maximum is None else f"{self.maximum:g}"
        return f"{self.kind} {low} … {high}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "kind": self.kind, "default": self.default, "minimum": self.minimum,
            "maximum": self.maximum, "choices": list(self.choices), "title_zh": self.zh, "title_en": self.en,
        }  # fmt: skip


def _number(value: Any) -> float | None:
    """A finite number from JSON or from a form field, None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run asks for: rows at least, memory at most, and about how many minutes on two cores."""

    min_rows: int = 20
    memory_mb: int = 1024
    minutes: float = 1.0


@dataclass(frozen=True, slots=True)
class Note:
    """A remark on a finished run, for people: a warning keeps its stable code."""

    code: str
    zh: str
    en: str

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "zh": self.zh, "en": self.en}


def _silent(progress: float, stage: str, **metrics: float) -> None:
    """The report of a run that nobody watches."""


@dataclass(slots=True)
class Context:
    """Everything one run is given. `columns` maps a feature's name to the heading in the factory's table."""

    data: Path
    parent: Bundle | None
    params: Mapping[str, Any]
    out: Path  # an empty folder: the bundle is written here
    name: str  # vendor/name of the derivative
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    label_column: str | None = None
    parent_version: int = 0
    report: Callable[..., None] = _silent  # report(progress 0..1, stage, **metrics)


@dataclass(slots=True)
class Outcome:
    """A sealed bundle, and child and parent measured on the same held-out rows ([] where the parent cannot be)."""

    bundle: Path
    child: list[Metric]
    parent: list[Metric] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # rows, rows_train, rows_test, parity, file sizes …

    def as_dict(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "metrics": [metric.model_dump() for metric in self.child],
            "parent_metrics": [metric.model_dump() for metric in self.parent],
            "notes": [note.as_dict() for note in self.notes],
            "facts": self.facts,
        }


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to adapt. `levels`: the manifests' `adaptable` values of parents that it may work on."""

    name: str
    title_zh: str
    title_en: str
    tasks: tuple[Task, ...]  # of the derivative
    modalities: tuple[Modality, ...]
    relation: Relation
    run: Callable[[Context], Outcome]
    parameters: tuple[Parameter, ...] = ()
    needs: Needs = field(default_factory=Needs)
    parent: Literal["required", "optional"] = "required"
    parent_tasks: tuple[Task, ...] = ()  # () : the same as `tasks`
    levels: tuple[Adaptable, ...] = ("calibrate", "head", "lora")
    data: Literal["table", "images", "any"] = "table"
    needs_labels: bool = True
    summary_zh: str = ""
    summary_en: str = ""

    def check(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, typed, defaults filled in; `BadInput` for an unknown name or a value out of bounds."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in params:
            if name not in known:
                lawful = ", ".join(known) or "–"
                raise BadInput(
                    "PARAMETER_UNKNOWN",
                    zh=f"配方 {self.name} 没有参数 {str(name)[:60]}",
                    en=f"recipe {self.name} has no parameter {str(name)[:60]!r}",
                    remedy_zh=f"可用参数: {lawful}",
                    remedy_en=f"its parameters: {lawful}",
                    field=f"params.{str(name)[:60]}",
                )
        return {name: known[name].check(params.get(name, known[name].default)) for name in known}

    def check_parent(self, manifest: Manifest | None) -> None:
        """Refuse a parent that does not fit: wrong task or kind of data, or one that its vendor does not open."""
        if manifest is None:
            if self.parent == "required":
                raise BadInput(
                    "PARENT_NEEDED",
                    zh=f"配方 {self.name} 需要一个基础模型",
                    en=f"recipe {self.name} needs a model to start from",
                    remedy_zh="请给出 model, 形式为 vendor/name",
                    remedy_en="name it as model: vendor/name",
                    field="model",
                )
            return
        if manifest.adapter_of is not None:
            raise Unprocessable(
                "PARENT_IS_ADAPTER",
                zh=f"{manifest.name} 是适配器, 没有自己的计算图, 不能再作为基础模型",
                en=f"{manifest.name} is an adapter: it has no graph of its own to start from",
                remedy_zh=f"请在它的基座 {manifest.adapter_of.name} 上适配",
                remedy_en=f"adapt its base, {manifest.adapter_of.name}",
                field="model",
            )
        tasks = self.parent_tasks or self.tasks
        if manifest.task not in tasks or manifest.modality not in self.modalities:
            raise Unprocessable(
                "PARENT_NOT_FOR_RECIPE",
                zh=f"{manifest.name} 的任务是 {manifest.task} ({manifest.modality}), 配方 {self.name} 不适用",
                en=f"{manifest.name} does {manifest.task} ({manifest.modality}); recipe {self.name} does not fit it",
                remedy_zh=f"该配方适用于: {', '.join(tasks)}",
                remedy_en=f"the recipe works on: {', '.join(tasks)}",
                field="model",
            )
        if manifest.adaptable not in self.levels:
            raise Unprocessable(
                "PARENT_NOT_ADAPTABLE",
                zh=f"{manifest.name} 的供应商声明可适配程度为 {manifest.adaptable}, 不允许 {self.name}",
                en=f"the vendor of {manifest.name} opens it as adaptable={manifest.adaptable}, not for {self.name}",
                remedy_zh=f"需要: {', '.join(self.levels)}",
                remedy_en=f"needed: {', '.join(self.levels)}",
                field="model",
            )

    def card(self) -> dict[str, Any]:
        """What `GET /v1/recipes` shows of it."""
        return {
            "name": self.name, "title_zh": self.title_zh, "title_en": self.title_en, "summary_zh": self.summary_zh,
            "summary_en": self.summary_en, "tasks": list(self.tasks), "modalities": list(self.modalities),
            "relation": self.relation, "parent": self.parent, "parent_tasks": list(self.parent_tasks or self.tasks),
            "levels": list(self.levels), "data": self.data, "needs_labels": self.needs_labels,
            "parameters": [parameter.as_dict() for parameter in self.parameters],
            "needs": asdict(self.needs),
        }  # fmt: skip


@cache
def recipes() -> dict[str, Recipe]:
    """Every recipe by name, in the order of `RECIPE_NAMES`."""
    found: dict[str, Recipe] = {}
    for name in RECIPE_NAMES:
        recipe: Recipe = importlib.import_module(f"adapters.recipes.{name}").RECIPE
        found[recipe.name] = recipe
    return found


def recipe_named(name: str) -> Recipe:
    """One recipe; `NotFound` RECIPE_NOT_FOUND that lists what there is."""
    if name in recipes():
        return recipes()[name]
    raise NotFound(
        "RECIPE_NOT_FOUND",
        zh=f"没有名为 {name[:60]} 的配方",
        en=f"there is no recipe {name[:60]!r}",
        remedy_zh=f"可用配方: {', '.join(recipes())}",
        remedy_en=f"recipes: {', '.join(recipes())}",
        field="recipe",
    )
