"""The trial of one bundle inside the limited subprocess: static safety, load, parity, processing, cost, stability.

Everything found leaves through `send` as soon as it is known, so that what was found before a crash is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.bundle import open_bundle
from model_store.errors import Refusal
from model_store.inspection.batches import check_batches
from model_store.inspection.drift import measure_drift
from model_store.inspection.graph_safety import check_graph
from model_store.inspection.limits import Limits
from model_store.inspection.measure import cpu_name, measure_cost, measure_steadiness
from model_store.inspection.parity import compare_outputs, rows_of, take_rows
from model_store.inspection.precision import declared_precision, sealed_precision
from model_store.inspection.probe_inputs import synthetic_inputs
from model_store.inspection.samples import check_golden, check_processing, read_samples, runs_at_all
from model_store.inspection.sandbox import private_bytes
from model_store.inspection.sealed import SealedSet, read_sealed
from model_store.inspection.subject import Send, Subject, say_out_of_memory
from model_store.runtime import ORT_VERSION, Graph, release_memory
from model_store.tensors import Array

SYNTHETIC_ROWS = 8
REPEATS = 3


def run_trial(
    root: Path, private: bool, limits: Limits, sealed: list[SealedSet], send: Send, base: Path | None = None
) -> None:
    """Run every step in order; stops where a step finds an error that makes the next ones meaningless.

    `base`: of an adapter bundle, which is tried on that base's graph.
    """
    subject = Subject(root, open_bundle(root), private, limits, sealed, send)
    subject.base = open_bundle(base) if base is not None else None
    try:
        _run_steps(subject)
    except MemoryError:
        say_out_of_memory(subject.findings)
    except Refusal as refusal:  # a measurement that the graph refused half-way
        subject.say_refusal(refusal, "GRAPH_NOT_RUN", "model.onnx")
    finally:
        subject.send("findings", [each.as_dict() for each in subject.findings])


def _run_steps(subject: Subject) -> None:
    send, findings = subject.send, subject.findings
    send("stage", "safety")
    facts = check_graph(subject.model_path.parent, subject.manifest, subject.limits, findings)
    send("facts", facts)
    if findings.failed:
        return
    _send_findings(subject)
    loaded = _load_and_check_golden(subject)
    if loaded is None or findings.failed:
        return
    graph, load_ms, memory = loaded
    send("stage", "processing")
    check_processing(subject, graph)
    if subject.inputs is None:
        rows = SYNTHETIC_ROWS if subject.manifest.batching.dynamic else 1
        subject.inputs = synthetic_inputs(graph.inputs, rows)
    if findings.failed or subject.inputs is None or not runs_at_all(subject, graph, subject.inputs):
        return
    send("stage", "batch")
    parity = check_batches(subject, graph, subject.inputs)
    if findings.failed:
        return
    _send_findings(subject)
    send("stage", "cost")
    send("cost", _cost(subject, graph, subject.inputs, load_ms, memory))
    send("stage", "scorecard")
    send("scorecard", _scorecard(subject, graph, subject.inputs, parity, facts))


def _send_findings(subject: Subject) -> None:
    """What is known so far, in case the next step ends this process."""
    subject.send("findings", [each.as_dict() for each in subject.findings])


def _load_and_check_golden(subject: Subject) -> tuple[Graph, float, int] | None:
    """Load and check the samples twice: as a private version runs, then optimised as a listed one does.

    The first load evaluates nothing of the graph, so what loops or allocates without end meets the run's deadline
    rather than hanging in the optimiser. Returns the optimised graph, its load ms and its private bytes.
    """
    subject.send("stage", "load")
    try:
        plain = subject.load(trusted=False)
        subject.send("stage", "golden")
        read_samples(subject)
        check_golden(subject, plain)
        if not subject.golden and not subject.findings.failed:
            made_up = synthetic_inputs(plain.inputs, 1)
            if made_up is not None and not subject.manifest.features:
                runs_at_all(subject, plain, made_up)
        if subject.findings.failed:
            return None
        del plain
        release_memory()
        before = private_bytes()
        start = time.perf_counter()
        graph = subject.load(trusted=True)
        load_ms = (time.perf_counter() - start) * 1e3
        memory = max(0, private_bytes() - before)
        check_golden(subject, graph)
        return graph, load_ms, memory
    except Refusal as refusal:
        is_adapters = subject.base is not None and refusal.code.startswith(("ADAPTER_", "BASE_"))
        subject.say_refusal(refusal, refusal.code if is_adapters else "GRAPH_NOT_LOADED", refusal.field or "model.onnx")
        return None


def _cost(subject: Subject, graph: Graph, inputs: Mapping[str, Array], load_ms: float, memory: int) -> dict[str, Any]:
    """The cost model as `manifest.CostModel` has it, and the points it was fitted to."""
    rows = rows_of(inputs) if subject.manifest.batching.dynamic else None
    budget = subject.limits.measure_s
    a, b, points = measure_cost(graph, inputs, rows, subject.manifest.batching.max_rows, budget)
    return {
        "a_ms_per_row": a,
        "b_ms": b,
        "load_ms": load_ms,
        "private_bytes": memory,
        "cpu": cpu_name(),
        "ort_version": ORT_VERSION,
        "points": points,
    }


def _scorecard(
    subject: Subject, graph: Graph, inputs: Mapping[str, Array], parity: dict[str, Any] | None, facts: dict[str, Any]
) -> dict[str, Any]:
    rows = rows_of(inputs) if subject.manifest.batching.dynamic else None
    single = take_rows(inputs, 0, 1) if rows else dict(inputs)
    measures = measure_steadiness(graph, single, subject.limits.measure_s)
    measures.append(_measure_determinism(subject, graph, inputs, bool(facts.get("random"))))
    if subject.from_samples:
        measures += measure_drift(graph, subject.pipeline, subject.manifest, inputs)
    if parity is not None:
        measures.append(parity)
    return {"precision": _precision(subject, graph), "stability": {"measures": measures, "cpu": cpu_name()}}


def _measure_determinism(subject: Subject, graph: Graph, inputs: Mapping[str, Array], random: bool) -> dict[str, Any]:
    """Whether the same inputs give the same bits, `REPEATS` times."""
    first = graph.run(inputs)
    repeats = [compare_outputs(first, graph.run(inputs), 0, 0) for _ in range(REPEATS)]
    same = sum(all(each.within for each in differences) for differences in repeats)
    if same < REPEATS:
        subject.findings.add(
            "NOT_DETERMINISTIC",
            "warning",
            "同样的输入得到不同的输出" + (" (计算图含随机算子)" if random else ""),
            "the same inputs give different outputs" + (" (the graph has random operators)" if random else ""),
            "请去掉随机算子 (dropout 以推理模式导出)",
            "remove random operators (export dropout in inference mode)",
            "model.onnx",
        )
    return {
        "name": "deterministic",
        "title_zh": "重复运行一致的比例",
        "title_en": "share of identical repeats",
        "n": REPEATS,
        "value": same / REPEATS,
    }


def _precision(subject: Subject, graph: Graph) -> dict[str, Any]:
    """On the first sealed set that fits; the vendor's own metrics otherwise, said to be so."""
    manifest, pipeline = subject.manifest, subject.pipeline
    fitting = next((each for each in subject.sealed if each.fits(manifest)), None)
    if fitting is None or pipeline is None:
        return declared_precision(manifest)
    answers: list[dict[str, Any]] = []
    try:
        rows, targets = read_sealed(fitting)
        step = max(1, min(manifest.batching.max_rows, 64)) if manifest.batching.dynamic else 1
        for first in range(0, len(rows), step):
            encoded = pipeline.encode(rows[first : first + step])
            answers += pipeline.decode(subject.run(graph, encoded), encoded)
        return sealed_precision(manifest, fitting.name, answers, targets)
    except (Refusal, ValueError, KeyError, TypeError, OSError) as error:
        subject.findings.add(
            "SEALED_SET_FAILED",
            "warning",
            f"封存测试集 {fitting.name} 无法用于该版本: {error}",
            f"the sealed test set {fitting.name} could not be used with this version: {error}",
            "请检查特征名称是否与同族模型一致",
            "check that the features are those of the family",
            "scorecard.precision",
        )
        return declared_precision(manifest)
