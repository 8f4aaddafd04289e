"""The command line: `up`, `serve`, `conformance`, `sites`, `tour`, `catalogue`, `operator`, `node`, `journal`,
`reports`,
`backup`, `restore`, `verify` and `doctor` work on this machine, the rest on a market.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marketplace.cli_elsewhere import AlgomartGroup
from model_store.errors import Refusal

if TYPE_CHECKING:
    from marketplace.backup import BackupResult
    from marketplace.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts · 输出 JSON")]
app = typer.Typer(cls=AlgomartGroup, no_args_is_help=True, add_completion=False, help="AlgoMart 算法超市")
catalogue = typer.Typer(no_args_is_help=True, help="The starter shelf")
app.add_typer(catalogue, name="catalogue")


@app.callback()
def root() -> None:
    """AlgoMart 算法超市: a self-hosted marketplace for industrial models."""


@app.command()
def up(
    home: Annotated[Path | None, typer.Option(help="Folder of all data (ALGOMART_HOME)")] = None,
    port: Annotated[int | None, typer.Option(help="Port (ALGOMART_PORT)")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (ALGOMART_HOST)")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC, 0: off (ALGOMART_GRPC_PORT)")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that answer calls (ALGOMART_WORKERS)"),
    ] = None,
    demo: Annotated[bool | None, typer.Option("--demo/--no-demo", help="Demonstration organisations and shelf")] = None,
) -> None:
    """Start the market and keep it in the foreground."""
    from marketplace.settings import Settings
    from marketplace.start import run_market

    given = {"home": home, "port": port, "host": host, "grpc_port": grpc_port, "workers": workers, "demo": demo}
    settings = Settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    raise typer.Exit(run_market(settings))


@app.command()
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="A bundle (folder or zip), or a folder of bundles; not with --market")
    ] = None,
    market: Annotated[str, typer.Option(help="Serve this market's models instead: http(s)://host:port")] = "",
    token: Annotated[
        str, typer.Option(help="With --market: what algomart node add printed", envvar="ALGOMART_NODE_TOKEN")
    ] = "",
    port: Annotated[int, typer.Option(help="Port")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC, 0: off", envvar="ALGOMART_GRPC_PORT")] = 0,
    home: Annotated[Path, typer.Option(help="Folder for the node's key, journal and models")] = Path(".algomart-node"),
    trusted: Annotated[bool, typer.Option(help="Run the graphs in this process, not in the limited worker")] = False,
    no_key: Annotated[bool, typer.Option("--no-key", help="Programs of this machine may call without a key")] = False,
    triton_compat: Annotated[
        bool, typer.Option("--triton-compat", help="Triton's own name and words", envvar="ALGOMART_TRITON_COMPAT")
    ] = False,
) -> None:
    """A serving node: alone over bundles, or of a market elsewhere · 推理节点: 独立运行, 或作为市场的节点

    algomart serve bundles/ — alone: Open Inference (/v2) and named features (/v1/use), metered into a journal; no
    prices, vouchers, choosing or adapting.

    algomart serve --market https://market.example — the market's models with the market's keys, prices and vouchers:
    leases are taken there, models come from there when first called, the journal is shipped there and charged.

    Needs the base install only.
    """
    gc.disable()  # until the node is ready (`NodeServer.startup`): what is imported and listed is all kept
    from marketplace import cli_serve

    with _refusals():
        if market:
            cli_serve.of_market(folder, market, token, host, port, grpc_port, home, triton_compat)
        else:
            cli_serve.alone(folder, host, port, grpc_port, home, trusted, no_key, triton_compat)


@app.command()
def conformance(
    url: Annotated[str | None, typer.Argument(help="The server's address, without /v2")] = None,
    model: Annotated[str | None, typer.Option(help="A model of the server's own, for the general checks")] = None,
    key: Annotated[str | None, typer.Option(help="Sent as Authorization: Bearer KEY")] = None,
    header: Annotated[list[str] | None, typer.Option(help="A header for every request, NAME:VALUE")] = None,
    only: Annotated[str | None, typer.Option(help="One area, or one check by its number")] = None,
    prefix: Annotated[str, typer.Option(help="What the names of the kit's models begin with")] = "conformance--",
    as_json: AsJson = False,
    junit: Annotated[Path | None, typer.Option(help="File for a JUnit report")] = None,
    export: Annotated[Path | None, typer.Option(help="Folder for the kit's models, ready to serve")] = None,
) -> None:
    """Check any server against the Open Inference Protocol V2: algomart conformance URL · 检查任意 V2 推理服务

    First serve the models that --export writes (for AlgoMart, Triton, MLServer, KServe), or name one with --model.
    Ends with 1 where a MUST, or a must of an extension that the server claims, is broken. Base install only.
    """
    from serving.conformance.command import examine

    with _refusals():
        conforms = examine(url, model, key, header or [], only, prefix, as_json, junit, export)
    raise typer.Exit(0 if conforms else 1)


@app.command()
def sites(
    bundle: Annotated[Path, typer.Argument(help="A transformer encoder's bundle: folder or zip · 模型包")],
    out: Annotated[Path, typer.Argument(help="New folder for the bundle with sites · 输出文件夹")],
    targets: Annotated[
        str, typer.Option(help="Comma-separated: q, k, v, all, the last part of a module's name, or a node's name")
    ] = "q,v",
    max_rank: Annotated[int, typer.Option(min=1, max=512, help="Largest rank that an adapter may have")] = 16,
    classes: Annotated[
        int | None,
        typer.Option(min=0, max=512, help="Room for an adapter's own classes; 64 where the bundle answers a vector"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give an encoder adapter sites: its fine-tuned variants then share one graph · 为基座注入适配点

    Behind each target comes y += (x @ A) @ B, where A and B are an adapter's, of rank 0 without one. Checked on the
    bundle's golden samples: its own answers stay, and rows of one run may each have another adapter.

    algomart sites encoder/ base/ — at the query and value projections, as LoRA's authors do.

    algomart sites encoder.zip base/ --targets all --max-rank 8 — learns more, and costs every call more.

    Publish the result as the base's next version: fine-tuning (recipe text_lora) then makes adapters of some hundred
    kilobytes, where it made whole models. Needs the base install only.
    """
    from marketplace import cli_sites

    with _refusals():
        words = [word.strip() for word in targets.split(",") if word.strip()]
        cli_sites.make(bundle, out, words, max_rank, classes, as_json)


@app.command()
def tour(
    calls: Annotated[int, typer.Option(min=2, help="Calls in each settlement mode")] = 1000,
    as_json: AsJson = False,
    export: Annotated[Path | None, typer.Option(help="Folder for the exported usage and published prices")] = None,
) -> None:
    """Walk the whole main job on a fresh market, in both settlement modes, and print the receipt."""
    from marketplace.cli_client import told
    from marketplace.tour import print_receipt, run_tour

    with told(as_json):  # one of its steps may be refused: the workshop, say, is not installed yet
        receipt = run_tour(calls=calls, say=(lambda line: None) if as_json else print, export=export)
    if as_json:
        print(json.dumps(receipt, ensure_ascii=False))
    else:
        print_receipt(receipt)
    raise typer.Exit(0 if receipt["ledger_balanced"] else 1)


@catalogue.command()
def rebuild(
    data: Annotated[Path, typer.Option(help="Folder of the data sets")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="Where the bundles go")] = Path("marketplace/catalogue/starter"),
    only: Annotated[str, typer.Option(help="One model only: vendor/name")] = "",
) -> None:
    """Train the starter shelf again from the data (minutes; needs the workshop's packages)."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "adapters.recipes.shelf.build", "--data", str(data), "--out", str(out)]
    raise typer.Exit(subprocess.run([*command, *(["--only", only] if only else [])], check=False).returncode)


@app.command()
def backup(
    archive: Path, home: Annotated[Path | None, typer.Option(help="ALGOMART_HOME")] = None, as_json: AsJson = False
) -> None:
    """Everything a market has, in one .tar with hashes; also while it runs."""
    from marketplace.backup import backup as write

    with _refusals():
        _print_archive(write(_settings(home), archive), as_json)


@app.command()
def restore(archive: Path, home: Path, as_json: AsJson = False) -> None:
    """Unpack a backup into a new folder, every hash checked."""
    from marketplace.backup import restore as read

    with _refusals():
        _print_archive(read(archive, home), as_json)


@app.command()
def verify(
    pack: Annotated[Path, typer.Argument(help="A claim's pack: GET /api/v1/claims/{id}/pack")],
    journals: Annotated[
        Path | None, typer.Option(help="节点日志文件夹: 逐条核对 · Folder of journals, to hold each record against")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a claim batch's pack by itself, without a market · 离线核验申报包; status 1 where anything does not hold.

    Hashes, document, postings, usage × price, shares, period, use-by and redeem-by days, invoices, journal segments,
    proofs and the chain of days; with --journals also the journals' own bytes and records. Says which of these were
    judged and which an older pack has too little for. What nobody can forge is a chain that was kept elsewhere: compare
    the one shown last with yours.
    """
    from dataclasses import asdict

    from marketplace.integrity.judgements import line_of
    from marketplace.integrity.verify import verify_pack

    report = verify_pack(pack)
    if journals is not None:
        from marketplace.integrity.verify_journals import verify_journals

        verify_journals(pack, journals, report)
    if as_json:
        typer.echo(json.dumps({"holds": report.holds, **asdict(report)}, ensure_ascii=False))
    else:
        for name, value in report.facts.items():
            typer.echo(f"  {name}: {value}")
        if report.facts.get("paid") is False:
            typer.echo("  该批次尚未支付 · this batch is not paid")
        for each in report.judgements:
            typer.echo(f"  {line_of(each)}")
        for wrong in report.wrong[:50]:
            typer.echo(f"✗ {wrong}")
        typer.echo("✓ 核验通过 · it holds" if report.holds else f"✗ {len(report.wrong)} 处不符 · it does not hold")
    raise typer.Exit(0 if report.holds else 1)


@app.command()
def doctor(home: Annotated[Path | None, typer.Option(help="ALGOMART_HOME")] = None, as_json: AsJson = False) -> None:
    """Check database, ledger, bundles, registry, disk and settings; status 1 where something is wrong."""
    from marketplace.doctor import examine, is_sound

    findings = examine(_settings(home))
    if as_json:
        sound = is_sound(findings)
        typer.echo(json.dumps({"sound": sound, "findings": [each.as_dict() for each in findings]}, ensure_ascii=False))
        raise typer.Exit(0 if sound else 1)
    for finding in findings:
        mark = {"ok": "✓", "warning": "!"}.get(finding.severity, "✗")
        typer.echo(f"{mark} {finding.zh} · {finding.en}")
        if finding.remedy_zh:
            typer.echo(f"    {finding.remedy_zh} · {finding.remedy_en}")
    raise typer.Exit(0 if is_sound(findings) else 1)


def _print_archive(done: BackupResult, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"archive": str(done.archive), "files": done.files, "bytes": done.bytes}))
        return
    typer.echo(f"✓ {done.archive} · {done.files} 个文件 files · {done.bytes / 2**20:.1f} MiB")


def _settings(home: Path | None) -> Settings:
    from marketplace.settings import Settings

    settings = Settings()
    return settings if home is None else settings.model_copy(update={"home": home})


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        typer.echo(f"{refusal.code}: {refusal.zh} — {refusal.remedy_zh}\n{refusal.en} — {refusal.remedy_en}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """The entry point of the `algomart` command."""
    app()


if __name__ == "__main__":
    main()
