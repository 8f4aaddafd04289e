"""`Pipeline`: how a bundle is fed and read. The one module that inspection, serving, choosing and the workshop all
use, so that a verdict never flips because one of them forgot a normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model_store.bundle import Bundle
from model_store.errors import BadInput, Unprocessable
from model_store.manifest import Feature
from model_store.processing import decoding, steps
from model_store.processing.encoding import Encoding
from model_store.tensors import Array


class Pipeline:
    """Stateless between calls and safe to share across threads."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises `Unprocessable` FEATURE_UNDECLARED where a step names a feature that the manifest does not declare."""
        self.manifest = bundle.manifest
        self._folder = bundle.path
        self.features: dict[str, Feature] = {feature.name: feature for feature in bundle.manifest.features}
        self._check_steps()

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Rows of named features → {tensor: [N, …]}.

        Raises `BadInput` naming the row and the feature: ROWS_EMPTY, FEATURE_UNKNOWN, FEATURE_MISSING,
        FEATURE_NOT_NUMBER, FEATURE_OUT_OF_RANGE, CATEGORY_UNKNOWN, SERIES_TOO_SHORT, IMAGE_UNREADABLE, COLUMN_MISSING;
        `TooLarge` INPUT_TOO_LARGE, FEATURE_TEXT_TOO_LONG; `Unprocessable` PROCESSING_MISFIT where the manifest's own
        steps do not fit.
        """
        if not rows:
            raise BadInput(
                "ROWS_EMPTY",
                zh="没有输入行",
                en="there are no rows",
                remedy_zh="请至少提供一行",
                remedy_en="give at least one row",
                field="inputs",
            )
        extra = {step.group for step in self.manifest.pre if step.op == "window"} | {
            step.order for step in self.manifest.pre if step.op == "window"
        }
        self._check_names(rows, {name for name in extra if name})
        work = Encoding(self.features, rows, self._folder)
        for step in self.manifest.pre:
            try:
                steps.STEPS[type(step)](work, step)
            except (ValueError, IndexError, KeyError, TypeError) as error:  # the manifest's fault: refusals pass
                raise _misfit(step.op, error) from error
        wanted = [spec.name for spec in self.manifest.inputs]
        return {name: work.tensors[name] for name in wanted if name in work.tensors}

    def decode(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array] | None = None) -> list[dict[str, Any]]:
        """Outputs by tensor name → one result per row. `inputs`: the encoded tensors, for masks and the count of rows.

        Raises `Unprocessable` OUTPUT_MISSING, OUTPUT_MISFIT, LABELS_COUNT, PROCESSING_MISFIT.
        """
        work = decoding.Decoding(self.manifest.target, outputs, inputs or {})
        for step in self.manifest.post:
            try:
                decoding.STEPS[type(step)](work, step)
            except (ValueError, IndexError, KeyError, TypeError) as error:
                raise _misfit(step.op, error) from error
        if work.results or not outputs:
            return work.results
        first = next(iter(outputs.values()))
        return [
            {name: array[place].tolist() for name, array in outputs.items() if array.ndim and len(array) == len(first)}
            for place in range(len(first) if first.ndim else 0)
        ]

    def _check_names(self, rows: Sequence[Mapping[str, Any]], extra: set[str]) -> None:
        known = self.features.keys() | extra
        for place, row in enumerate(rows):
            for name in row:
                if name not in known:
                    raise BadInput(
                        "FEATURE_UNKNOWN",
                        zh=f"第 {place + 1} 行的“{str(name)[:60]}”不是该模型的特征",
                        en=f"row {place + 1}: {str(name)[:60]!r} is no feature of this model",
                        remedy_zh=f"该模型的特征: {', '.join(list(self.features)[:30])}",
                        remedy_en=f"its features are: {', '.join(list(self.features)[:30])}",
                        field=str(name)[:60],
                    )

    def _check_steps(self) -> None:
        for step in self.manifest.pre:
            named = [*getattr(step, "features", []), *getattr(step, "values", {})]
            if hasattr(step, "feature"):
                named.append(step.feature)
            for name in named:
                if name not in self.features:
                    raise Unprocessable(
                        "FEATURE_UNDECLARED",
                        zh=f"预处理步骤 {step.op} 使用了未声明的特征“{name}”",
                        en=f"pre-processing step {step.op!r} uses a feature {name!r} that is not declared",
                        remedy_zh="请在 manifest 的 features 中声明它",
                        remedy_en="declare it among the manifest's features",
                        field=name,
                    )


def _misfit(op: str, error: Exception) -> Unprocessable:
    return Unprocessable(
        "PROCESSING_MISFIT",
        zh=f"模型包的处理步骤 {op} 无法执行: {str(error)[:200]}",
        en=f"the bundle's processing step {op!r} cannot be carried out: {str(error)[:200]}",
        remedy_zh="请供应商检查 manifest 的 pre 与 post",
        remedy_en="the vendor should check the manifest's pre and post",
        field=op,
    )
