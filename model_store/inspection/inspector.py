"""`inspect_bundle`: the one inspection, for publishing, the command line, the web and every client.

Order: files (names, first bytes, sizes, links), manifest and hashes, card; then in a limited subprocess the graph's
static safety, load, golden samples, processing, batches, cost, scorecard. This process never parses the graph.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_store.bundle import Bundle, open_bundle
from model_store.errors import Refusal
from model_store.inspection.card import check_card
from model_store.inspection.files import check_files
from model_store.inspection.limits import DEFAULT_LIMITS, Limits
from model_store.inspection.pool import POOL, Answer, ChildFailed
from model_store.inspection.precision import declared_precision
from model_store.inspection.report import Findings, Report, finding_of
from model_store.inspection.sealed import SealedSet
from model_store.manifest import AdapterOf

OUT_OF_MEMORY_STATUS = 3
STAGES = ("files", "card", "safety", "load", "golden", "processing", "batch", "cost", "scorecard")
Progress = Callable[[str, float], None]


def inspect_bundle(
    path: Path,
    *,
    private: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    on_progress: Progress | None = None,
    sealed_sets: Sequence[SealedSet] | None = None,
    base: Path | None = None,
) -> Report:
    """Inspect the bundle folder `path`. Blocks (0.3 to 2 s for a small model); call it from a thread.

    `base`: the folder of the base that an adapter bundle is tried on. `private`: the card is advice.
    `on_progress(stage, fraction)` is called at the start of each of `STAGES`.
    Whatever is wrong with the bundle, limits included, is a finding; nothing is raised for it.
    """
    start = time.perf_counter()

    def at_stage(stage: str) -> None:
        if on_progress is not None and stage in STAGES:
            on_progress(stage, STAGES.index(stage) / len(STAGES))

    findings = Findings()
    at_stage("files")
    bundle_bytes = check_files(path, limits, findings)
    bundle = _open(path, findings)
    answer = Answer(isolated=False)
    if bundle is not None and bundle.manifest.adapter_of is not None:
        if base is None:
            _say_no_base(bundle.manifest.adapter_of, findings)
        else:
            bundle_bytes += sum(file.stat().st_size for file in base.iterdir() if file.is_file())
    if bundle is not None and not findings.failed:
        request = {
            "bundle": str(path.resolve()),
            "base": str(base.resolve()) if base is not None and bundle.manifest.adapter_of is not None else None,
            "private": private,
            "limits": limits.as_dict(),
            "bundle_bytes": bundle_bytes,
            "sealed": [each.as_dict() for each in sealed_sets or ()],
        }
        answer = _try(request, limits, findings, at_stage)
    at_stage("card")
    if bundle is not None:
        check_card(bundle.manifest, path, private, findings)
    return _report(findings, answer, bundle, start)


def _say_no_base(of: AdapterOf, findings: Findings) -> None:
    findings.error(
        "ADAPTER_BASE_MISSING",
        f"适配器的基座 {of.name}@{of.version} 不在这里, 无法检验",
        f"the adapter's base {of.name}@{of.version} is not here, so the adapter cannot be tried",
        "请在有该基座的市场上检验或发布",
        "inspect or publish it where that version of the base is",
        "manifest.json",
    )


def _open(path: Path, findings: Findings) -> Bundle | None:
    """The manifest, with every file's hash verified; None where there is none to judge."""
    if findings.failed:
        return None
    try:
        return open_bundle(path, verify=True)
    except Refusal as refusal:
        findings.error(
            refusal.code, refusal.zh, refusal.en, refusal.remedy_zh, refusal.remedy_en, refusal.field or "manifest.json"
        )
        return None


def _try(request: dict[str, Any], limits: Limits, findings: Findings, at_stage: Callable[[str], None]) -> Answer:
    try:
        answer = POOL.try_bundle(request, limits, at_stage)
    except (ChildFailed, OSError) as error:
        findings.error(
            "INSPECTION_UNAVAILABLE",
            f"检验子进程无法完成: {error}",
            f"the inspection subprocess could not do its work: {error}",
            "请稍后再试; 若持续出现请联系运营方",
            "try again later; if it goes on, tell the operator",
        )
        return Answer(isolated=False)
    said = answer.said.get("findings")
    findings.extend([finding_of(each) for each in said if isinstance(each, dict)] if isinstance(said, list) else [])
    _judge_end(answer, limits, findings)
    if not answer.isolated:
        findings.add(
            "NOT_ISOLATED",
            "warning",
            "未隔离: 本机不允许为检验子进程断开网络",
            "not isolated: this machine does not let the inspection subprocess leave the network",
            "请允许非特权用户命名空间 (unshare -rn)",
            "allow unprivileged user namespaces (unshare -rn)",
        )
    return answer


def _judge_end(answer: Answer, limits: Limits, findings: Findings) -> None:
    """How the subprocess ended, as a finding: too long, too much memory, a crash. A clean end says nothing."""
    end = answer.end
    stage = str(answer.said.get("stage", "safety"))[:32]
    killed = end.get("signal", 0)
    by_cpu = killed in (signal.SIGXCPU, signal.SIGKILL) and float(end.get("cpu_s", 0)) >= limits.cpu_s - 1
    if end.get("timed_out") or by_cpu:
        findings.error(
            "GRAPH_TIMED_OUT",
            f"检验在“{stage}”阶段超过时限 ({limits.wall_s:g} 秒, CPU {limits.cpu_s} 秒), 已终止",
            f"inspection ran past its limit ({limits.wall_s:g} s, {limits.cpu_s} CPU s) at stage {stage!r}: ended",
            "请检查 Loop 的结束条件与计算量",
            "check the condition of its loops and how much it computes",
            "model.onnx",
        )
    elif end.get("status") == OUT_OF_MEMORY_STATUS or (killed == signal.SIGKILL):
        findings.error(
            "GRAPH_OUT_OF_MEMORY",
            f"检验在“{stage}”阶段用尽了允许的内存",
            f"inspection used up the memory that it is allowed at stage {stage!r}",
            "请缩小模型, 检查 ConstantOfShape、Expand、Tile 的规模",
            "make the model smaller; check how much ConstantOfShape, Expand and Tile allocate",
            "model.onnx",
        )
    elif killed or end.get("status") != 0:
        name = signal.Signals(killed).name if killed in set(signal.Signals) else f"{end.get('status')}"
        text = str(answer.said.get("broken", name))
        findings.error(
            "GRAPH_CRASHED",
            f"检验在“{stage}”阶段崩溃: {text}",
            f"inspection crashed at stage {stage!r}: {text}",
            "请用 onnxruntime 在本地运行该模型; 若本地正常请联系运营方",
            "run the model locally with onnxruntime; if that works, tell the operator",
            "model.onnx",
        )


def _report(findings: Findings, answer: Answer, bundle: Bundle | None, start: float) -> Report:
    def dictionary(kind: str) -> dict[str, Any]:
        value = answer.said.get(kind)
        return value if isinstance(value, dict) else {}

    scorecard = dictionary("scorecard")
    if not scorecard and bundle is not None:
        scorecard = {"precision": declared_precision(bundle.manifest), "stability": {}}
    return Report(
        passed=not findings.failed,
        isolated=answer.isolated,
        findings=tuple(findings),
        facts=dictionary("facts"),
        golden=dictionary("golden"),
        cost=dictionary("cost") or None,
        scorecard=scorecard,
        duration_ms=round((time.perf_counter() - start) * 1000),
    )
