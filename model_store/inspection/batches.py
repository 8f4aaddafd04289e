"""A row alone must give what it gives in a batch: otherwise one caller's rows would change another's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_store.errors import Refusal
from model_store.inspection.parity import Difference, compare_outputs, join_rows, rows_of, take_rows
from model_store.inspection.subject import Subject
from model_store.runtime import Graph
from model_store.tensors import Array

PARITY_ROWS = (1, 2, 3, 8)


def check_batches(subject: Subject, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Any] | None:
    """Compare batches of `PARITY_ROWS` with single rows, where the manifest says that rows may be batched.

    Returns the scorecard's measure; None where nothing could be compared.
    """
    manifest = subject.manifest
    if not manifest.batching.dynamic:
        return None
    fixed = [spec.name for spec in graph.inputs if not spec.shape or spec.shape[0] != -1]
    if fixed or not rows_of(inputs):
        subject.findings.error(
            "BATCH_DIMENSION_FIXED",
            f"batching.dynamic 为真, 但输入 {fixed[:5]} 的第一维不可变",
            f"batching.dynamic is true, yet the first dimension of inputs {fixed[:5]} cannot vary",
            "请以动态批量维导出 (dynamic_axes), 或设 batching.dynamic 为 false",
            "export with a dynamic batch dimension (dynamic_axes), or set batching.dynamic to false",
            "manifest.batching",
        )
        return None
    sizes = [size for size in PARITY_ROWS if size <= max(1, manifest.batching.max_rows)]
    try:
        singles = [subject.run(graph, take_rows(inputs, row, 1)) for row in range(max(sizes))]
        batches = {size: subject.run(graph, take_rows(inputs, 0, size)) for size in sizes}
    except Refusal as refusal:
        subject.say_refusal(refusal, "BATCH_NOT_RUN", "manifest.batching")
        return None
    worst = Difference("")
    wrong: list[tuple[int, Difference]] = []
    for size, batch in batches.items():
        alone = join_rows(list(singles[:size]))
        if alone is None:
            wrong.append((size, Difference(next(iter(batch)), "输出没有批量维", "outputs have no batch dimension")))
            continue
        differences = compare_outputs(alone, batch, manifest.golden_rtol, manifest.golden_atol)
        worst = max([worst, *differences], key=lambda each: each.worst_abs)
        wrong += [(size, each) for each in differences if not each.within]
    for size, each in wrong[:4]:
        _say_differs(subject, size, each)
    return {
        "name": "batch_parity_worst_abs",
        "title_zh": "成批与单行的最大差异",
        "title_en": "largest batch-versus-single difference",
        "n": sum(sizes),
        "value": worst.worst_abs,
        "passed": not wrong,
    }


def _say_differs(subject: Subject, size: int, difference: Difference) -> None:
    # A dynamically quantised graph scales by the whole batch, so its rows do see each other a little; that is said, and
    # is the vendor's choice. In a float graph it means that rows are mixed up.
    subject.findings.add(
        "BATCH_MISMATCH",
        "error" if subject.manifest.variation == "fp32" else "warning",
        f"{size} 行成批时, 输出“{difference.output}”与逐行不同: {difference.why_zh}",
        f"with {size} rows in a batch, output {difference.output!r} differs from single rows: {difference.why_en}",
        "请检查批量维是否被固定或混合; 若各行确实相关, 请设 batching.dynamic 为 false",
        "check that the batch dimension is neither fixed nor mixed; if rows do depend on each other, set"
        " batching.dynamic to false",
        "manifest.batching",
    )
