"""`algomart journal`: the nodes' own records of every call, checked by themselves and against the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from marketplace.cli_operator import AsJson, Home, database
from marketplace.cli_text import fen_of_micro, local_time, word
from serving.journal_format import SUFFIX, JournalUnreadable

if TYPE_CHECKING:
    from marketplace.usage.replay import Replay
    from serving.journal_summary import Summary

Paths = Annotated[list[Path], typer.Argument(help="日志文件或文件夹 · Journal files (.alj), or folders of them")]
journal = typer.Typer(
    no_args_is_help=True,
    help="""用量日志 · The usage journals: what each node wrote down of every call before it answered.

    algomart journal verify .algomart/journal     — 完整性: frames, sequence, seal, torn tails; needs nothing else

    algomart journal replay .algomart/journal     — 与账本逐条核对: is every record charged once, for the same amount?

    退出码 · Exit code: 0 一切相符 all is sound · 1 有不符 something is not · 2 无法读取 a file cannot be read.
    """,
)
STATES = {
    "sealed": ("已封存", "sealed"),
    "open": ("未封存", "open"),
    "torn": ("尾部残缺", "torn"),
    "damaged": ("已损坏", "damaged"),
}


@journal.command()
def verify(paths: Paths, as_json: AsJson = False) -> None:
    """校验日志 · Check journals by themselves: checksums, sequence numbers, the seal's hash, torn tails."""
    from serving.journal_summary import summarise

    summaries, unreadable = [], []
    for path in _files(paths):
        try:
            summaries.append(summarise(path))
        except (JournalUnreadable, OSError) as error:
            unreadable.append(str(error))
    if as_json:
        typer.echo(json.dumps({"journals": msgspec.to_builtins(summaries), "unreadable": unreadable}))
    else:
        for summary in summaries:
            _print_summary(summary)
        _print_unreadable(unreadable)
    _exit(all(summary.state in ("sealed", "open") for summary in summaries), unreadable)


@journal.command()
def replay(paths: Paths, home: Home = None, as_json: AsJson = False) -> None:
    """与账本核对 · Hold journals against the ledger of the market in this home; nothing is written."""
    from marketplace.db import reading
    from marketplace.usage.replay import replay as run

    found, unreadable = [], []
    with database(home, as_json) as engine, reading(engine) as session:
        for path in _files(paths):
            try:
                found.append(run(session, path))
            except (JournalUnreadable, OSError) as error:
                unreadable.append(str(error))
    if as_json:
        items = [msgspec.to_builtins(each) | {"agrees": each.agrees} for each in found]
        typer.echo(json.dumps({"journals": items, "unreadable": unreadable}))
    else:
        for each in found:
            _print_replay(each)
        _print_unreadable(unreadable)
    _exit(all(each.agrees for each in found), unreadable)


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not found:
        typer.echo(word(f"没有找到日志文件 (*{SUFFIX})", f"no journal (*{SUFFIX}) is there"), err=True)
        raise typer.Exit(2)
    return found


def _print_summary(summary: Summary) -> None:
    fen = fen_of_micro(summary.amount_micro)
    typer.echo(f"{summary.file}  {word(*STATES[summary.state])}")
    line = word(
        f"  {summary.records} 条记录 ({summary.first_seq}–{summary.last_seq}), {summary.usage} 次调用, 共 {fen} 分",
        f"  {summary.records} records ({summary.first_seq}–{summary.last_seq}), {summary.usage} calls, {fen} fen",
    )
    if summary.running:
        line += word(f", {summary.running} 个流未结束", f", {summary.running} streams without an end")
    typer.echo(line)
    if summary.usage:
        typer.echo(f"  {local_time(summary.first_occurred_ms)} – {local_time(summary.last_occurred_ms)}")
    if summary.sha256:
        typer.echo(f"  SHA-256 {summary.sha256}")
    for problem in summary.problems:
        typer.echo(f"  ✗ {problem}")


def _print_replay(found: Replay) -> None:
    _print_summary(found.summary)
    facts: list[tuple[str, str, Any]] = [
        ("已入账", "posted", found.posted), ("隔离", "quarantined", found.quarantined),
        ("重复 (只计一次)", "repeated (billed once)", found.repeated),
        ("账本中没有", "missing in the ledger", found.missing),
        ("与账本不同", "differing", found.differing), ("按价格重算不符", "rated differently", found.misrated),
        ("日志中没有", "in the ledger only", found.foreign),
    ]  # fmt: skip
    told = [f"{word(zh, en)} {count}" for zh, en, count in facts if count]
    typer.echo(f"  {'✓' if found.agrees else '✗'} {', '.join(told) or word('没有调用', 'no calls')}")
    if found.missing and found.epoch_state != "sealed":
        typer.echo(word("  该期尚未封存: 可能还未入账", "  the epoch is open: ingest may not have come so far"))
    if found.seal_agrees is False:
        typer.echo(word("  ✗ 封存哈希与账本记录不符", "  ✗ the seal's hash is not the one the market keeps"))
    if found.prefixes_differ:
        typer.echo(word("  ✗ 与逐日存证的哈希不符", "  ✗ not the bytes whose hashes were recorded day by day"))
    for what, ids in found.examples.items():
        typer.echo(f"    {what}: {', '.join(ids[:5])}{' …' if len(ids) > 5 else ''}")


def _print_unreadable(unreadable: list[str]) -> None:
    for told in unreadable:
        typer.echo(f"✗ {told}", err=True)


def _exit(sound: bool, unreadable: list[str]) -> None:
    raise typer.Exit(2 if unreadable else 0 if sound else 1)
