"""The trial of one bundle inside the limited subprocess: static safety, load, parity, processing, cost, stability.

Everything found leaves through `send` as soon as it is known, so that what was found before a crash is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_store.bundle import Bundle, open_bundle
from model_store.errors import Refusal
from model_store.golden import Golden, read_golden
from model_store.inspection.drift import measure_drift
from model_store.inspection.graph_safety import check_graph
from model_store.inspection.limits import Limits
from model_store.inspection.measure import cpu_name, measure_cost, measure_steadiness
from model_store.inspection.parity import (
    Difference,
    compare_outputs,
    join_rows,
    rows_of,
    take_rows,
)
from model_store.inspection.precision import declared_precision, sealed_precision
from model_store.inspection.probe_inputs import example_row, synthetic_inputs
from model_store.inspection.report import Findings
from model_store.inspection.sandbox import private_bytes
from model_store.inspection.sealed import SealedSet, read_sealed
from model_store.manifest import Manifest
from model_store.processing.pipeline import Pipeline
from model_store.runtime import ORT_VERSION, Graph, load_graph
from model_store.tensors import Array

Send = Callable[[str, Any], None]
PARITY_ROWS = (1, 2, 3, 8)


@dataclass(slots=True)
class Trial:
    """What the steps hand on to each other."""

    root: Path
    bundle: Bundle
    private: bool
    limits: Limits
    sealed: list[SealedSet]
    send: Send
    findings: Findings = field(default_factory=Findings)
    golden: list[Golden] = field(default_factory=list)
    pipeline: Pipeline | None = None
    inputs: dict[str, Array] | None = None  # a batch to measure with
    from_samples: bool = False  # `inputs` come from golden samples or examples rather than from random numbers

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


def run_trial(root: Path, private: bool, limits: Limits, sealed: list[SealedSet], send: Send) -> None:
    """Run every step in order; stops where a step finds an error that makes the next ones meaningless."""
    trial = Trial(root, open_bundle(root), private, limits, sealed, send)
    try:
        _run_steps(trial)
    except MemoryError:
        say_out_of_memory(trial.findings)
    finally:
        trial.send("findings", [each.as_dict() for each in trial.findings])


def _run_steps(trial: Trial) -> None:
    trial.send("stage", "safety")
    facts = check_graph(trial.root, trial.manifest, trial.limits, trial.findings)
    trial.send("facts", facts)
    if trial.findings.failed:
        return
    trial.send("stage", "load")
    loaded = _load(trial)
    if loaded is None:
        return
    graph, load_ms, before = loaded
    trial.send("stage", "golden")
    _check_golden(trial, graph)
    trial.send("stage", "processing")
    _check_processing(trial, graph)
    if trial.inputs is None:
        trial.inputs = synthetic_inputs(graph.inputs, rows=8 if trial.manifest.batching.dynamic else 1)
    if trial.findings.failed or trial.inputs is None or not _runs(trial, graph, trial.inputs):
        trial.send("scorecard", {"precision": declared_precision(trial.manifest), "stability": {}})
        return
    memory = max(0, private_bytes() - before)
    trial.send("stage", "batch")
    parity = _check_batches(trial, graph, trial.inputs)
    if trial.findings.failed:
        return
    trial.send("stage", "cost")
    _send_cost(trial, graph, trial.inputs, load_ms, memory)
    trial.send("stage", "scorecard")
    trial.send("scorecard", _scorecard(trial, graph, trial.inputs, parity, facts))


def _load(trial: Trial) -> tuple[Graph, float, int] | None:
    """Load as a private version runs (nothing of the graph is evaluated while loading), then as a listed one does."""
    path = trial.bundle.model_path
    try:
        load_graph(path, trusted=False)
        before = private_bytes()
        start = time.perf_counter()
        graph = load_graph(path)
        return graph, (time.perf_counter() - start) * 1e3, before
    except Refusal as refusal:
        _say_refusal(trial, refusal, "GRAPH_NOT_LOADED", "model.onnx")
        return None


# --- golden samples ----------------------------------------------------------------------------------------------------


def _check_golden(trial: Trial, graph: Graph) -> None:
    try:
        trial.golden = read_golden(trial.root)[: trial.limits.golden_cases]
    except Refusal as refusal:
        _say_refusal(trial, refusal, refusal.code, "golden")
        return
    if not trial.golden:
        trial.findings.add(
            "GOLDEN_MISSING",
            "advice" if trial.private else "warning",
            "没有黄金样本, 输出是否正确无从验证; 已用合成输入试运行",
            "there are no golden samples, so no output could be verified; made-up inputs were run instead",
            "请在 golden/0/ 放 inputs.npz 与 outputs.npz (几行即可)",
            "put inputs.npz and outputs.npz in golden/0/ (a few rows are enough)",
            "golden",
        )
        trial.send("golden", {"cases": 0, "passed": 0, "worst": None})
        return
    passed, worst = 0, Difference("")
    for case in trial.golden:
        differences = _golden_case(trial, graph, case)
        passed += bool(differences) and all(each.within for each in differences)
        worst = max([worst, *differences], key=lambda each: each.worst_abs)
    trial.send(
        "golden",
        {
            "cases": len(trial.golden),
            "passed": passed,
            "worst": {"output": worst.output, "abs": worst.worst_abs, "rel": worst.worst_rel},
            "rtol": trial.manifest.golden_rtol,
            "atol": trial.manifest.golden_atol,
        },
    )
    _choose_inputs(trial)


def _golden_case(trial: Trial, graph: Graph, case: Golden) -> list[Difference]:
    """Run one pair and say what differs; [] where it did not run at all."""
    where = f"golden/{case.name}"
    try:
        actual = _run(trial, graph, case.inputs)
    except Refusal as refusal:
        _say_refusal(trial, refusal, "GOLDEN_NOT_RUN", where)
        return []
    if not case.outputs:
        trial.findings.error(
            "GOLDEN_EMPTY",
            "样本没有期望输出",
            "the sample has no expected outputs",
            "请补上 outputs.npz",
            "add outputs.npz",
            where,
        )
        return []
    differences = compare_outputs(case.outputs, actual, trial.manifest.golden_rtol, trial.manifest.golden_atol)
    for each in differences:
        if not each.within:
            trial.findings.error(
                "GOLDEN_MISMATCH",
                f"输出“{each.output}”与期望不符: {each.why_zh}",
                f"output {each.output!r} is not what was expected: {each.why_en}",
                "请检查归一化是否写入清单, 样本是否由这个 model.onnx 生成",
                "check that the normalisation is in the manifest and that this model.onnx made the sample",
                where,
            )
    return differences


def _choose_inputs(trial: Trial) -> None:
    """The rows to measure with: golden samples one below the other where they fit together, else the first of them."""
    pieces = [case.inputs for case in trial.golden]
    if not pieces[0]:
        return
    joined = None
    if trial.manifest.batching.dynamic and all(rows_of(piece) for piece in pieces):
        joined = join_rows(list(pieces))
    trial.inputs = joined or pieces[0]
    trial.from_samples = True


# --- processing ----------------------------------------------------------------------------------------------------------


def _check_processing(trial: Trial, graph: Graph) -> None:
    """Encode the features' examples, run them, decode the answers: what a factory's first call will do."""
    if not trial.manifest.features or trial.findings.failed:
        return
    row, _ = example_row(trial.manifest)
    try:
        trial.pipeline = Pipeline(trial.bundle)
        encoded = trial.pipeline.encode([row])
        outputs = _run(trial, graph, encoded)
        answers = trial.pipeline.decode(outputs)
    except Refusal as refusal:
        trial.findings.error(
            "PROCESSING_FAILED",
            f"按示例值走完前处理、模型与后处理时出错: {refusal.zh}",
            f"pre-processing, graph and post-processing fail on the examples: {refusal.en}",
            refusal.remedy_zh or "请检查 manifest.json 的 features、pre 与 post",
            refusal.remedy_en or "check features, pre and post in manifest.json",
            refusal.field or "manifest.pre",
        )
        return
    if len(answers) != 1:
        trial.findings.error(
            "PROCESSING_ROWS",
            f"一行输入得到 {len(answers)} 个结果",
            f"one row gave {len(answers)} answers",
            "请检查 post 所用张量的第一维是否为行",
            "check that the first dimension of the tensors in post is the row",
            "manifest.post",
        )
    if trial.inputs is None:
        trial.inputs, trial.from_samples = encoded, True


def _runs(trial: Trial, graph: Graph, inputs: Mapping[str, Array]) -> bool:
    """Whether the graph runs on `inputs` at all; made-up inputs may be unlawful for it, which is only said."""
    try:
        _run(trial, graph, inputs)
        return True
    except Refusal as refusal:
        if trial.from_samples or refusal.code != "MODEL_RUN_FAILED":
            _say_refusal(trial, refusal, "GRAPH_NOT_RUN", "model.onnx")
            return False
        trial.findings.add(
            "SYNTHETIC_INPUT_REFUSED",
            "advice" if trial.private else "warning",
            f"合成输入无法运行, 成本未测: {refusal.zh}",
            f"the graph refuses made-up inputs, so its cost was not measured: {refusal.en}",
            "请提供黄金样本",
            "add golden samples",
            "model.onnx",
        )
        return False


# --- batches -------------------------------------------------------------------------------------------------------------


def _check_batches(trial: Trial, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Any] | None:
    """A row alone must give what it gives in a batch; only where the manifest says that rows may be batched."""
    manifest = trial.manifest
    if not manifest.batching.dynamic:
        return None
    fixed = [spec.name for spec in graph.inputs if not spec.shape or spec.shape[0] != -1]
    if fixed or not rows_of(inputs):
        trial.findings.error(
            "BATCH_DIMENSION_FIXED",
            f"batching.dynamic 为真, 但输入 {fixed[:5]} 的第一维不可变",
            f"batching.dynamic is true, yet the first dimension of inputs {fixed[:5]} cannot vary",
            "请以动态批量维导出 (dynamic_axes), 或设 batching.dynamic 为 false",
            "export with a dynamic batch dimension (dynamic_axes), or set batching.dynamic to false",
            "manifest.batching",
        )
        return None
    sizes = [size for size in PARITY_ROWS if size <= manifest.batching.max_rows]
    most = max(sizes)
    try:
        singles = [_run(trial, graph, take_rows(inputs, row, 1)) for row in range(most)]
        batches = {size: _run(trial, graph, take_rows(inputs, 0, size)) for size in sizes}
    except Refusal as refusal:
        _say_refusal(trial, refusal, "BATCH_NOT_RUN", "manifest.batching")
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
        _say_batch_differs(trial, size, each)
    return {"name": "batch_parity_worst_abs", "title_zh": "成批与单行的最大差异",
            "title_en": "largest batch-versus-single difference", "n": sum(sizes), "value": worst.worst_abs,
            "passed": not wrong}  # fmt: skip


def _say_batch_differs(trial: Trial, size: int, difference: Difference) -> None:
    # A dynamically quantised graph scales by the whole batch, so its rows do see each other a little; that is said, and
    # is the vendor's choice. In a float graph it means that rows are mixed up.
    trial.findings.add(
        "BATCH_MISMATCH",
        "error" if trial.manifest.variation == "fp32" else "warning",
        f"{size} 行成批时, 输出“{difference.output}”与逐行不同: {difference.why_zh}",
        f"with {size} rows in a batch, output {difference.output!r} differs from single rows: {difference.why_en}",
        "请检查批量维是否被固定或混合; 若各行确实相关, 请设 batching.dynamic 为 false",
        "check that the batch dimension is neither fixed nor mixed; if rows do depend on each other, set batching.dynamic"
        " to false",
        "manifest.batching",
    )


# --- cost and scorecard -----------------------------------------------------------------------------------------------------


def _send_cost(trial: Trial, graph: Graph, inputs: Mapping[str, Array], load_ms: float, memory: int) -> None:
    rows = rows_of(inputs) if trial.manifest.batching.dynamic else None
    budget = trial.limits.measure_s
    a, b, points = measure_cost(graph, inputs, rows, trial.manifest.batching.max_rows, budget)
    trial.send(
        "cost",
        {
            "a_ms_per_row": a,
            "b_ms": b,
            "load_ms": load_ms,
            "private_bytes": memory,
            "cpu": cpu_name(),
            "ort_version": ORT_VERSION,
            "points": points,
        },
    )


def _scorecard(
    trial: Trial, graph: Graph, inputs: Mapping[str, Array], parity: dict[str, Any] | None, facts: dict[str, Any]
) -> dict[str, Any]:
    rows = rows_of(inputs) if trial.manifest.batching.dynamic else None
    single = take_rows(inputs, 0, 1) if rows else dict(inputs)
    measures = measure_steadiness(graph, single, trial.limits.measure_s)
    measures.append(_measure_determinism(trial, graph, inputs, bool(facts.get("random"))))
    if trial.from_samples:
        measures += measure_drift(graph, trial.pipeline, trial.manifest, inputs)
    if parity is not None:
        measures.append(parity)
    return {"precision": _precision(trial, graph), "stability": {"measures": measures, "cpu": cpu_name()}}


def _measure_determinism(trial: Trial, graph: Graph, inputs: Mapping[str, Array], random: bool) -> dict[str, Any]:
    runs = 3
    first = graph.run(inputs)
    same = sum(all(each.within for each in compare_outputs(first, graph.run(inputs), 0, 0)) for _ in range(runs))
    if same < runs:
        trial.findings.add(
            "NOT_DETERMINISTIC",
            "warning",
            "同样的输入得到不同的输出" + ("(计算图含随机算子)" if random else ""),
            "the same inputs give different outputs" + (" (the graph has random operators)" if random else ""),
            "请去掉随机算子 (dropout 以推理模式导出)",
            "remove random operators (export dropout in inference mode)",
            "model.onnx",
        )
    return {"name": "deterministic", "title_zh": "重复运行一致的比例", "title_en": "share of identical repeats",
            "n": runs, "value": same / runs}  # fmt: skip


def _precision(trial: Trial, graph: Graph) -> dict[str, Any]:
    """On the first sealed set that fits; the vendor's own metrics otherwise, said to be so."""
    fitting = next((each for each in trial.sealed if each.fits(trial.manifest)), None)
    if fitting is None or trial.pipeline is None:
        return declared_precision(trial.manifest)
    answers: list[dict[str, Any]] = []
    try:
        rows, targets = read_sealed(fitting)
        step = max(1, min(trial.manifest.batching.max_rows, 64)) if trial.manifest.batching.dynamic else 1
        for first in range(0, len(rows), step):
            encoded = trial.pipeline.encode(rows[first : first + step])
            answers += trial.pipeline.decode(_run(trial, graph, encoded))
        return sealed_precision(trial.manifest, fitting.name, answers, targets)
    except (Refusal, ValueError, KeyError, TypeError, OSError) as error:
        trial.findings.add(
            "SEALED_SET_FAILED",
            "warning",
            f"封存测试集 {fitting.name} 无法用于该版本: {error}",
            f"the sealed test set {fitting.name} could not be used with this version: {error}",
            "请检查特征名称是否与同族模型一致",
            "check that the features are those of the family",
            "scorecard.precision",
        )
        return declared_precision(trial.manifest)


# --- running --------------------------------------------------------------------------------------------------------------


def _run(trial: Trial, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return graph.run(inputs, deadline_ms=trial.limits.run_ms, max_output_bytes=trial.limits.output_bytes)


def _say_refusal(trial: Trial, refusal: Refusal, code: str, where: str) -> None:
    """A refusal of runtime or reader as an error; what ran out (time, memory) has a code of its own."""
    lowered = refusal.en.lower()
    if refusal.code == "DEADLINE_EXCEEDED":
        say_timed_out(trial.findings, f"{trial.limits.run_ms / 1000:g}", where)
    elif refusal.code == "MODEL_OUT_OF_MEMORY" or "bad_alloc" in lowered or "failed to allocate" in lowered:
        say_out_of_memory(trial.findings, where)
    elif refusal.code == "OUTPUT_TOO_LARGE":
        trial.findings.error(
            refusal.code, refusal.zh, refusal.en, "请让输出更小", "make the outputs smaller", refusal.field or where
        )
    else:
        trial.findings.error(code, refusal.zh, refusal.en, refusal.remedy_zh, refusal.remedy_en, where)


def say_timed_out(findings: Findings, seconds: str, where: str = "model.onnx") -> None:
    findings.error(
        "GRAPH_TIMED_OUT",
        f"计算图运行超过 {seconds} 秒仍未结束, 已终止",
        f"the graph had not finished after {seconds} s and was ended",
        "请检查 Loop 的结束条件与输入规模",
        "check the condition of its loops and the size of its inputs",
        where,
    )


def say_out_of_memory(findings: Findings, where: str = "model.onnx") -> None:
    findings.error(
        "GRAPH_OUT_OF_MEMORY",
        "计算图申请的内存超过上限",
        "the graph asks for more memory than it is allowed",
        "请检查 ConstantOfShape、Expand、Tile 等算子的规模, 或缩小模型",
        "check how much ConstantOfShape, Expand and Tile allocate, or make the model smaller",
        where,
    )
