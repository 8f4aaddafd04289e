"""`algomart findings`: look for what a person should look at, list it, read it, and say what was made of it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from marketplace.cli_client import Json, Key, Url, open_client, printed, show, told
from marketplace.cli_text import word, yuan

findings = typer.Typer(
    no_args_is_help=True,
    help="""线索 · Findings about vouchers, for operators: to be looked at by a person, never a verdict.

    algomart findings run
    algomart findings list --state open
    algomart findings dispose fnd_… under_review --reason "asked the factory for its line's cycle time"
    """,
)
console = Console()


class Next(StrEnum):
    """What a finding may become."""

    under_review = "under_review"
    confirmed = "confirmed"
    dismissed = "dismissed"


@findings.command()
def run(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """现在查找 · Look for everything now, as the market does every night."""
    with told(as_json), open_client(url, key) as market:
        counts = market.post("/api/v1/findings/run")
    text = f"{counts['found']} found · {counts['new']} new · {counts['changed']} with other evidence"
    show(counts, as_json, lambda _: console.print(f"✓ {text}"))


@findings.command("list")
def list_all(
    state: Annotated[str, typer.Option(help="open, under_review, confirmed, dismissed, unsettled")] = "",
    code: Annotated[str, typer.Option(help="Such as RELATED_PARTY")] = "",
    organisation: Annotated[str, typer.Option(help="An id: as enterprise or provider")] = "",
    page: int = 1,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """列出 · List findings, newest first."""
    with told(as_json), open_client(url, key) as market:
        asked = {"state": state or None, "code": code or None, "organisation": organisation or None, "page": page}
        answer = market.get("/api/v1/findings", **asked)
    show(answer, as_json, printed(_listed))


@findings.command("show")
def show_one(finding_id: str, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """查看 · One finding with its evidence and what was decided."""
    with told(as_json), open_client(url, key) as market:
        answer = market.get(f"/api/v1/findings/{finding_id}")
    show(answer, as_json, printed(_whole))


@findings.command()
def dispose(
    finding_id: str,
    state: Next,
    reason: Annotated[str, typer.Option(help="原因 · Why: kept with your name")],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """处置 · Say what was made of a finding; nothing else follows."""
    with told(as_json), open_client(url, key) as market:
        answer = market.post(f"/api/v1/findings/{finding_id}/dispose", {"state": state.value, "reason": reason})
    show(answer, as_json, lambda done: console.print(f"✓ {done['state']}"))


def _listed(answer: Any) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column(word("类别", "code"), no_wrap=True)
    table.add_column(word("说明", "what"), overflow="fold")
    table.add_column(word("金额", "amount"), no_wrap=True, justify="right")
    for each in answer["items"]:
        table.add_row(each["id"], f"{each['code']} {each['state']}", _said(each), yuan(each["amount_fen"]))
    return Group(table, Text(word(f"共 {answer['total']} 条", f"{answer['total']} findings"), style="dim"))


def _whole(answer: Any) -> RenderableType:
    lines = [Text(f"{answer['code']} · {answer['severity']} · {answer['state']}", style="bold"), Text(_said(answer))]
    lines += [Text(f"  {name}: {json.dumps(each, ensure_ascii=False)}") for name, each in answer["evidence"].items()]
    lines += [Text(f"  → {each['state']} ({each['member_id']}): {each['reason']}") for each in answer["dispositions"]]
    return Group(*lines)


def _said(finding: Any) -> str:
    return str(word(finding["text_zh"], finding["text_en"]))
