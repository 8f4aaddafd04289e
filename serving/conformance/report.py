"""A report for people (terminal, both languages) and for programs (JUnit XML; JSON is `Report.as_dict`)."""

from __future__ import annotations

from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.conformance.catalogue import AREAS
from serving.conformance.run import Report, Result

_LEVELS = {"MUST": "必须", "SHOULD": "应当", "EXTENSION": "扩展"}


def print_report(report: Report, console: Console) -> None:
    """What failed, with the request and response that show it; then a score for each area."""
    for result in report.results:
        if result.outcome == "failed":
            _print_failure(result, console)
    console.print(_scores(report))
    if report.missing:
        console.print(Text(f"未部署的测试模型 models not served: {', '.join(report.missing)}", style="yellow"))
    passed, asked = report.score(level="MUST")
    shoulds, asked_shoulds = report.score(level="SHOULD")
    extensions, asked_extensions = report.score(level="EXTENSION")
    counts = (
        f"MUST {passed}/{asked} · SHOULD {shoulds}/{asked_shoulds} · 扩展 extensions {extensions}/{asked_extensions}"
    )
    verdict, style = ("符合 conforms", "bold green") if report.conforms else ("不符合 does not conform", "bold red")
    console.print(Text.assemble((verdict, style), f"  {counts}"))


def _print_failure(result: Result, console: Console) -> None:
    check = result.check
    style = "bold yellow" if check.level == "SHOULD" else "bold red"
    title = f"✗ {check.number} {check.area} · {check.zh} · {check.en}"
    console.print(Text.assemble((f"{check.level} {_LEVELS[check.level]} ", style), title))
    console.print(Text(f"    {check.rule}\n    {check.rule.url}", style="dim"))
    console.print(Text(f"    {result.why}"))
    for part, content in (result.shown or {}).items():
        marker = ">" if part == "request" else "<"
        console.print(Text("\n".join(f"    {marker} {line}" for line in content.splitlines()), style="dim"))


def _scores(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("领域 area")
    for heading in ("MUST", "SHOULD", "扩展 extension", "不适用 n/a"):
        table.add_column(heading, justify="right")
    for area in AREAS:
        own = [each for each in report.results if each.check.area == area.name]
        if own:
            cells = [_score(report.score(area.name, level)) for level in _LEVELS]
            skipped = sum(each.outcome == "not applicable" for each in own)
            table.add_row(f"{area.zh} {area.name}", *cells, str(skipped or ""))
    return table


def _score(score: tuple[int, int]) -> Text:
    passed, asked = score
    return Text(f"{passed}/{asked}" if asked else "", style="" if passed == asked else "red")


def junit_of(report: Report) -> bytes:
    """JUnit XML: a suite for each area. A SHOULD that is not met is a skipped case with its reason, not a failure."""
    root = ElementTree.Element("testsuites", name=f"Open Inference Protocol V2: {report.url}")
    for area in AREAS:
        own = [each for each in report.results if each.check.area == area.name]
        if not own:
            continue
        failures = sum(each.outcome == "failed" and each.check.level != "SHOULD" for each in own)
        skipped = sum(each.outcome != "passed" for each in own) - failures
        suite = ElementTree.SubElement(
            root, "testsuite", name=area.name, tests=str(len(own)), failures=str(failures), skipped=str(skipped)
        )
        for each in own:
            _add_case(suite, each)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content


def _add_case(suite: ElementTree.Element, result: Result) -> None:
    check = result.check
    case = ElementTree.SubElement(
        suite, "testcase", classname=f"v2.{check.area}", name=f"{check.number} {check.level} {check.en}"
    )
    if result.outcome == "passed":
        return
    kind = "failure" if result.outcome == "failed" and check.level != "SHOULD" else "skipped"
    told = ElementTree.SubElement(case, kind, message=_xml_text(result.why))
    shown = "\n\n".join((result.shown or {}).values())
    told.text = _xml_text(f"{check.rule}\n{check.rule.url}\n\n{shown}")


def _xml_text(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold."""
    return "".join(letter if letter >= " " or letter in "\n\t" else "\ufffd" for letter in text)
