"""The report as plain text for a terminal: what was found, what to fix, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from model_store.inspection.report import SEVERITIES, Finding, Report

Language = Literal["zh", "en"]

_HEADINGS: dict[str, tuple[str, str]] = {
    "passed": ("检验通过", "Inspection passed"),
    "failed": ("检验未通过", "Inspection failed"),
    "isolated": ("已隔离网络", "isolated from the network"),
    "not_isolated": ("未隔离", "not isolated"),
    "error": ("必须修改", "must be fixed"),
    "warning": ("应当注意", "warnings"),
    "advice": ("建议", "advice"),
    "info": ("说明", "notes"),
    "remedy": ("改法", "fix"),
    "graph": ("计算图", "graph"),
    "golden": ("黄金样本", "golden samples"),
    "cost": ("成本", "cost"),
    "scorecard": ("两高评分卡", "two-high scorecard"),
    "precision": ("高精度", "precision"),
    "stability": ("高稳定", "stability"),
}
_MARKS = {"error": "✗", "warning": "!", "advice": "·", "info": "i"}


def render_text(report: Report, lang: Language = "zh") -> str:
    """Plain text with one finding a paragraph, errors first, then what was measured."""
    lines = [_first_line(report, lang)]
    for severity in SEVERITIES:
        found = report.of_severity(severity)
        if found:
            lines += ["", f"{_word(severity, lang)} ({len(found)})"]
            lines += [line for item in found for line in _finding_lines(item, lang)]
    lines += _fact_lines(report, lang)
    return "\n".join(lines) + "\n"


def _word(key: str, lang: Language) -> str:
    return _HEADINGS[key][0 if lang == "zh" else 1]


def _first_line(report: Report, lang: Language) -> str:
    verdict = _word("passed" if report.passed else "failed", lang)
    isolation = _word("isolated" if report.isolated else "not_isolated", lang)
    return f"{verdict} · {isolation} · {report.duration_ms} ms"


def _finding_lines(item: Finding, lang: Language) -> list[str]:
    text, remedy = (item.zh, item.remedy_zh) if lang == "zh" else (item.en, item.remedy_en)
    where = f" [{item.where}]" if item.where else ""
    lines = [f"  {_MARKS[item.severity]} {item.code}{where}: {text}"]
    return [*lines, f"      {_word('remedy', lang)}: {remedy}"] if remedy else lines


def _fact_lines(report: Report, lang: Language) -> list[str]:
    lines: list[str] = []
    facts = report.facts
    if facts:
        opset = ", ".join(f"{domain} {version}" for domain, version in (facts.get("opset") or {}).items())
        operators = sum((facts.get("ops") or {}).values())
        lines += [
            "",
            _word("graph", lang),
            *(f"  {_arrow(kind)} {_tensor(spec)}" for kind in ("inputs", "outputs") for spec in facts.get(kind, [])),
            f"  opset {opset} · {operators} ops · {facts.get('params', 0):,} params · {facts.get('bytes', 0):,} bytes",
        ]
    golden = report.golden
    if golden.get("cases"):
        lines += ["", f"{_word('golden', lang)}: {golden.get('passed', 0)}/{golden['cases']}"]
    if report.cost:
        cost = report.cost
        lines += [
            "",
            f"{_word('cost', lang)}: {cost['a_ms_per_row']:.4f} ms · n + {cost['b_ms']:.4f} ms, load "
            f"{cost['load_ms']:.1f} ms, {cost['private_bytes']:,} bytes",
        ]
    return lines + _scorecard_lines(report.scorecard, lang)


def _arrow(kind: str) -> str:
    return "→" if kind == "inputs" else "←"


def _tensor(spec: Mapping[str, Any]) -> str:
    return f"{spec.get('name')}: {spec.get('dtype')} {spec.get('shape')}"


def _scorecard_lines(scorecard: Mapping[str, Any], lang: Language) -> list[str]:
    if not scorecard:
        return []
    lines = ["", _word("scorecard", lang)]
    precision = scorecard.get("precision") or {}
    if precision:
        basis = precision.get("basis_zh" if lang == "zh" else "basis_en", "")
        lines.append(f"  {_word('precision', lang)}: {basis}")
        lines += [f"    {_measure(metric, lang)}" for metric in precision.get("metrics", [])]
    stability = scorecard.get("stability") or {}
    if stability:
        lines.append(f"  {_word('stability', lang)}")
        lines += [f"    {_measure(measure, lang)}" for measure in stability.get("measures", [])]
    return lines


def _measure(measure: Mapping[str, Any], lang: Language) -> str:
    title = measure.get("title_zh" if lang == "zh" else "title_en") or measure.get("name", "")
    value = measure.get("value")
    text = "–" if value is None else f"{value:.4g}"
    low, high = measure.get("low"), measure.get("high")
    interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
    note = measure.get("note_zh" if lang == "zh" else "note_en") or ""
    return f"{title}: {text}{interval} (n={measure.get('n', 0)}){' ' + note if note else ''}"
