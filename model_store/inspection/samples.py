"""Golden samples and the features' examples, run: does the graph give what its samples say, do pre and post fit it."""

from __future__ import annotations

from collections.abc import Mapping

from model_store.errors import Refusal
from model_store.golden import Golden, read_golden
from model_store.inspection.parity import Difference, compare_outputs, join_rows, rows_of
from model_store.inspection.probe_inputs import example_row
from model_store.inspection.subject import Subject
from model_store.processing.pipeline import Pipeline
from model_store.runtime import Graph
from model_store.tensors import Array


def read_samples(subject: Subject) -> None:
    """Read the bundle's golden pairs; none is advice (a warning for a public version), an unreadable one an error."""
    try:
        subject.golden = read_golden(subject.root)[: subject.limits.golden_cases]
    except Refusal as refusal:
        subject.say_refusal(refusal, refusal.code, "golden")
        return
    if not subject.golden:
        subject.findings.add(
            "GOLDEN_MISSING",
            "advice" if subject.private else "warning",
            "没有黄金样本, 输出是否正确无从验证; 已用合成输入试运行",
            "there are no golden samples, so no output could be verified; made-up inputs were run instead",
            "请在 golden/0/ 放 inputs.npz 与 outputs.npz (几行即可)",
            "put inputs.npz and outputs.npz in golden/0/ (a few rows are enough)",
            "golden",
        )
        subject.send("golden", {"cases": 0, "passed": 0, "worst": None})
        return
    _choose_inputs(subject)


def check_golden(subject: Subject, graph: Graph) -> None:
    """Run every golden pair on `graph` and report cases, passed and the worst difference."""
    if not subject.golden:
        return
    passed, worst = 0, Difference("")
    for case in subject.golden:
        differences = _golden_case(subject, graph, case)
        passed += bool(differences) and all(each.within for each in differences)
        worst = max([worst, *differences], key=lambda each: each.worst_abs)
    subject.send(
        "golden",
        {
            "cases": len(subject.golden),
            "passed": passed,
            "worst": {"output": worst.output, "abs": worst.worst_abs, "rel": worst.worst_rel},
            "rtol": subject.manifest.golden_rtol,
            "atol": subject.manifest.golden_atol,
        },
    )


def _golden_case(subject: Subject, graph: Graph, case: Golden) -> list[Difference]:
    """Run one pair and say what differs; [] where it did not run at all."""
    where = f"golden/{case.name}"
    try:
        actual = subject.run(graph, case.inputs)
    except Refusal as refusal:
        subject.say_refusal(refusal, "GOLDEN_NOT_RUN", where)
        return []
    if not case.outputs:
        subject.findings.error(
            "GOLDEN_EMPTY",
            "样本没有期望输出",
            "the sample has no expected outputs",
            "请补上 outputs.npz",
            "add outputs.npz",
            where,
        )
        return []
    differences = compare_outputs(case.outputs, actual, subject.manifest.golden_rtol, subject.manifest.golden_atol)
    for each in differences:
        if not each.within:
            subject.findings.error(
                "GOLDEN_MISMATCH",
                f"输出“{each.output}”与期望不符: {each.why_zh}",
                f"output {each.output!r} is not what was expected: {each.why_en}",
                "请检查归一化是否写入清单, 样本是否由这个 model.onnx 生成",
                "check that the normalisation is in the manifest and that this model.onnx made the sample",
                where,
            )
    return differences


def _choose_inputs(subject: Subject) -> None:
    """The rows to measure with: golden samples one below the other where they fit together, else the first of them."""
    pieces = [case.inputs for case in subject.golden]
    if not pieces[0]:
        return
    joined = None
    if subject.manifest.batching.dynamic and all(rows_of(piece) for piece in pieces):
        joined = join_rows(list(pieces))
    subject.inputs = joined or pieces[0]
    subject.from_samples = True


def check_processing(subject: Subject, graph: Graph) -> None:
    """Encode the features' examples, run them, decode the answers: what a factory's first call will do."""
    if not subject.manifest.features or subject.findings.failed:
        return
    row, _ = example_row(subject.manifest)
    try:
        subject.pipeline = Pipeline(subject.bundle)
        encoded = subject.pipeline.encode([row])
        answers = subject.pipeline.decode(subject.run(graph, encoded), encoded)
    except Refusal as refusal:
        subject.findings.error(
            "PROCESSING_FAILED",
            f"按示例值走完前处理、模型与后处理时出错: {refusal.zh}",
            f"pre-processing, graph and post-processing fail on the examples: {refusal.en}",
            refusal.remedy_zh or "请检查 manifest.json 的 features、pre 与 post",
            refusal.remedy_en or "check features, pre and post in manifest.json",
            refusal.field or "manifest.pre",
        )
        return
    if len(answers) != 1:
        subject.findings.error(
            "PROCESSING_ROWS",
            f"一行输入得到 {len(answers)} 个结果",
            f"one row gave {len(answers)} answers",
            "请检查 post 所用张量的第一维是否为行",
            "check that the first dimension of the tensors in post is the row",
            "manifest.post",
        )
    if subject.inputs is None:
        subject.inputs, subject.from_samples = encoded, True


def runs_at_all(subject: Subject, graph: Graph, inputs: Mapping[str, Array]) -> bool:
    """Whether the graph runs on `inputs`; made-up inputs may be unlawful for it, which is only said."""
    try:
        subject.run(graph, inputs)
        return True
    except Refusal as refusal:
        if subject.from_samples or refusal.code != "MODEL_RUN_FAILED":
            subject.say_refusal(refusal, "GRAPH_NOT_RUN", "model.onnx")
            return False
        subject.findings.add(
            "SYNTHETIC_INPUT_REFUSED",
            "advice" if subject.private else "warning",
            f"合成输入无法运行, 成本未测: {refusal.zh}",
            f"the graph refuses made-up inputs, so its cost was not measured: {refusal.en}",
            "请提供黄金样本",
            "add golden samples",
            "model.onnx",
        )
        return False
