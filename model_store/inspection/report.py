"""The inspection report: findings in two languages, facts, parity, cost, scorecard. One document for every client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "advice", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "advice", "info")
MAX_TEXT_CHARACTERS = 600
MAX_FINDINGS_OF_ONE_CODE = 12
MAX_FINDINGS = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `error` keeps a version from passing; `where` is a file, a node, a tensor or a manifest path."""

    code: str
    severity: Severity
    zh: str
    en: str
    remedy_zh: str = ""
    remedy_en: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


class Findings:
    """Collects findings, bounded: a hostile graph with a hundred thousand faults yields a dozen of each code."""

    def __init__(self) -> None:
        self._items: list[Finding] = []
        self._of_code: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def failed(self) -> bool:
        return any(item.severity == "error" for item in self._items)

    def add(
        self,
        code: str,
        severity: Severity,
        zh: str,
        en: str,
        remedy_zh: str = "",
        remedy_en: str = "",
        where: str = "",
    ) -> None:
        """Record a finding; texts are cut to their bound and stripped of control characters."""
        if self._of_code[code] >= MAX_FINDINGS_OF_ONE_CODE or len(self._items) >= MAX_FINDINGS:
            return
        item = Finding(code, severity, *(clean_text(text) for text in (zh, en, remedy_zh, remedy_en, where)))
        if item not in self._items:  # a step that runs twice says the same thing once
            self._of_code[code] += 1
            self._items.append(item)

    def error(self, code: str, zh: str, en: str, remedy_zh: str = "", remedy_en: str = "", where: str = "") -> None:
        self.add(code, "error", zh, en, remedy_zh, remedy_en, where)

    def extend(self, items: Iterator[Finding] | list[Finding] | Findings) -> None:
        for item in items:
            self.add(item.code, item.severity, item.zh, item.en, item.remedy_zh, item.remedy_en, item.where)


def clean_text(text: str) -> str:
    """`text` without control characters and at most `MAX_TEXT_CHARACTERS` long: it may quote a hostile file."""
    printable = "".join(c if c.isprintable() else " " for c in text[: MAX_TEXT_CHARACTERS + 1])
    return printable if len(printable) <= MAX_TEXT_CHARACTERS else printable[: MAX_TEXT_CHARACTERS - 1] + "…"


def finding_of(data: Mapping[str, Any]) -> Finding:
    """A finding from what a subprocess sent, which is not to be trusted with its types."""
    severity = data.get("severity")
    texts = {name: clean_text(str(data.get(name, ""))) for name in ("zh", "en", "remedy_zh", "remedy_en", "where")}
    return Finding(
        code=clean_text(str(data.get("code", "UNKNOWN")))[:64],
        severity=severity if severity in SEVERITIES else "error",
        **texts,
    )


@dataclass(frozen=True, slots=True)
class Report:
    """See the module's text. `isolated`: the graph ran in a subprocess that had no network."""

    passed: bool
    isolated: bool
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] | None = None
    scorecard: dict[str, Any] = field(default_factory=dict)
    duration_ms: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: {passed, isolated, findings[], facts, golden, cost, scorecard, duration_ms}."""
        return {
            "passed": self.passed,
            "isolated": self.isolated,
            "findings": [item.as_dict() for item in self.findings],
            "facts": self.facts,
            "golden": self.golden,
            "cost": self.cost,
            "scorecard": self.scorecard,
            "duration_ms": self.duration_ms,
        }

    def of_severity(self, severity: Severity) -> list[Finding]:
        return [item for item in self.findings if item.severity == severity]

    def codes(self) -> set[str]:
        return {item.code for item in self.findings}


def report_of(data: Mapping[str, Any]) -> Report:
    """The report that `Report.as_dict` wrote: for a client that received it as JSON and wants to render it."""
    return Report(
        passed=bool(data.get("passed")),
        isolated=bool(data.get("isolated")),
        findings=tuple(finding_of(item) for item in data.get("findings", [])),
        facts=dict(data.get("facts") or {}),
        golden=dict(data.get("golden") or {}),
        cost=data.get("cost"),
        scorecard=dict(data.get("scorecard") or {}),
        duration_ms=int(data.get("duration_ms") or 0),
    )
