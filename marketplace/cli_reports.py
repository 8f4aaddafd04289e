"""`algomart reports`: what the operator exports, from the machine that the market runs on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from marketplace.cli_operator import AsJson, Home, database
from marketplace.settings import Settings

reports = typer.Typer(
    no_args_is_help=True,
    help="""报表 · What the operator exports; the market may be running meanwhile.

    algomart reports pack reports.zip --as-of 2026-09-30
    """,
)


@reports.command("list")
def list_all(as_json: AsJson = False) -> None:
    """全部报表 · Every report."""
    from marketplace.reports.register import REPORTS

    if as_json:
        items = [report.view() for report in REPORTS.values()]
        typer.echo(json.dumps({"items": items, "total": len(items)}, ensure_ascii=False))
        return
    for report in REPORTS.values():
        typer.echo(f"{report.name}  {report.zh} · {report.en}{'' if report.reproducible else ' *'}")


@reports.command()
def pack(
    target: Annotated[Path, typer.Argument(help="目标文件 · The zip to write")],
    as_of: Annotated[str, typer.Option(help="日期或带时区的时刻 · A day, or an instant with its zone")] = "",
    programme: Annotated[str, typer.Option(help="只含一个券项目 · Keep to one programme")] = "",
    from_day: Annotated[str, typer.Option(help="用量与扣费的起始日 · Usage and charges from this day on")] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """打包 · All reports as CSV in a zip with its manifest; prints its SHA-256, the same for the same `--as-of`.

    结束码 1: 总账与来源或余额不符 · Ends with 1 where `reconcile` or `trial-balance` has rows that do not agree.
    """
    from marketplace.clock import now_ms
    from marketplace.db import reading
    from marketplace.reports.pack import differences_in, facts_of, instant_of, write_pack
    from model_store.blobs import FolderBlobs

    blobs = FolderBlobs((home or Settings().home) / "blobs")
    with database(home, as_json) as engine, reading(engine) as session, tempfile.TemporaryDirectory() as folder:
        facts = facts_of(session, blobs, instant_of(as_of, now_ms()), programme, from_day)
        made = write_pack(facts, Path(folder))
        with made.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        differences = differences_in(made)
        shutil.move(made, target)
    said = {"file": str(target), "sha256": digest, "as_of_ms": facts.as_of_ms, "differences": differences}
    typer.echo(json.dumps(said) if as_json else f"{digest}  {target}")
    for name, count in differences.items():
        typer.echo(f"✗ {name}: {count} 行不符 · {count} rows do not agree", err=True)
    if differences:
        raise typer.Exit(1)
