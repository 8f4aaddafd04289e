"""`algomart application`: an enterprise's applications for vouchers and their evidence, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from marketplace.cli_client import Json, Key, Url, console, open_client, show, told

application = typer.Typer(no_args_is_help=True, help="Applications for vouchers · 用券申请")
Id = Annotated[str, typer.Argument(help="Of the application (app_…)")]


@application.command("list")
def list_(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Your applications; all of them for an operator."""
    with told(as_json), open_client(url, key) as market:
        answer = market.get("/api/v1/applications")
    show(answer, as_json, _lines)


@application.command("show")
def show_(application_id: Id, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """One application: what is asked for, its files with their hashes, its checks."""
    with told(as_json), open_client(url, key) as market:
        answer = market.get(f"/api/v1/applications/{application_id}")
    show(answer, as_json, _details)


@application.command()
def attach(
    application_id: Id,
    code: Annotated[str, typer.Argument(help="Which evidence, as the programme's evidence_schema calls it")],
    file: Annotated[Path, typer.Argument(help="PDF, PNG, JPEG, XLSX or OFD")],
    url: Url = None, key: Key = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Hand in one file of evidence: algomart application attach app_… contract contract.pdf"""
    with told(as_json), open_client(url, key) as market:
        answer = market.attach_evidence(application_id, code, file)
    show(answer, as_json, _file)


@application.command()
def download(
    file_id: Annotated[str, typer.Argument(help="Of the file (evf_…)")],
    target: Annotated[Path, typer.Argument(help="Where it goes; must not exist")],
    url: Url = None, key: Key = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Fetch a file of evidence."""
    with told(as_json), open_client(url, key) as market:
        content = market.evidence(file_id)
        with target.open("xb") as out:
            out.write(content)
    show({"id": file_id, "bytes": len(content)}, as_json, lambda done: console.print(f"✓ {target} {done['bytes']}"))


@application.command()
def submit(application_id: Id, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Hand an application in."""
    with told(as_json), open_client(url, key) as market:
        answer = market.post(f"/api/v1/applications/{application_id}/submit")
    show(answer, as_json, _line)


def _lines(found: dict[str, Any]) -> None:
    for row in found["items"]:
        _line(row)
    console.print(f"{found['total']}", markup=False)


def _line(row: dict[str, Any]) -> None:
    console.print(f"{row['id']}  {row['state']}  {row['requested_fen'] / 100:.2f}  {row['programme']}", markup=False)


def _file(file: dict[str, Any]) -> None:
    text = (
        f"  {file['code']}  {file['name']}  {file['kind']}  {file['size_bytes']}  {file['state']}\n  {file['sha256']}"
    )
    console.print(text, markup=False, highlight=False)


def _details(row: dict[str, Any]) -> None:
    _line(row)
    if row["asked"]:
        console.print(f"补正 · asked for: {', '.join(row['asked'])}", markup=False)
    for file in row["files"]:
        _file(file)
    for check in row["checks"]:
        console.print(
            f"  {'✓' if check['passed'] else '✗'} {check['code']}: {check['zh']} · {check['en']}", markup=False
        )
