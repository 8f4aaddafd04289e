"""The commands that talk to a market over HTTP: every one a thin skin over `marketplace.client.Market`.

The address and key come from --url and --key, ALGOMART_URL and ALGOMART_KEY, or what `algomart login` remembered.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from marketplace import cli_text
from marketplace.client import Market, MarketError

T = TypeVar("T")
console, errors = Console(), Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts · 输出 JSON")]
Url = Annotated[str | None, typer.Option(help="The market's address (ALGOMART_URL)")]
Key = Annotated[str | None, typer.Option(help="Your key (ALGOMART_KEY)")]


def config_path() -> Path:
    """Where `algomart login` remembers address and key; readable by its owner only."""
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "algomart" / "login.json"


def open_client(url: str | None, key: str | None) -> Market:
    saved: dict[str, str] = {}
    if config_path().exists():
        saved = json.loads(config_path().read_text(encoding="utf-8"))
    known = saved.get("url", "").rstrip("/")
    address = (url or os.environ.get("ALGOMART_URL") or known).rstrip("/")
    # A remembered key goes to the market it was remembered for, never to another address.
    remembered = saved.get("key") if address == known else None
    return Market(address or None, key or os.environ.get("ALGOMART_KEY") or remembered)


@contextmanager
def told(as_json: bool = False) -> Iterator[None]:
    """A market's refusal as text in both languages (with --json as JSON) and exit status 1; never a traceback."""
    import httpx

    try:
        yield
    except MarketError as error:
        if as_json:
            print(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
            raise typer.Exit(1) from None
        errors.print(f"[bold red]{error.code}[/]", end=" ")
        text = f"{error.zh}\n  {error.remedy_zh}\n{error.en}\n  {error.remedy}"
        errors.print(text, markup=False, highlight=False)
        report = error.details.get("report")
        if report:
            print_report(report)
        raise typer.Exit(1) from None
    except httpx.TransportError as error:
        errors.print("[bold red]MARKET_UNREACHABLE[/]", end=" ")
        text = f"连不上市场: {error}\n  请检查 --url 或 ALGOMART_URL, 并确认 algomart up 正在运行\n"
        text += f"the market cannot be reached: {error}\n  check --url or ALGOMART_URL, and that algomart up runs"
        errors.print(text, markup=False, highlight=False)
        raise typer.Exit(1) from None
    except OSError as error:
        errors.print(f"[bold red]IO_ERROR[/] {error}")
        raise typer.Exit(1) from None


def show(value: Any, as_json: bool, text: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        text(value)


def with_bar(work: Callable[[Callable[[float, str], None]], T], quiet: bool) -> T:
    """Run `work(progress)` under a progress bar."""
    if quiet:
        return work(lambda share, stage: None)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("…", total=1.0)
        return work(lambda share, stage: bars.update(task, completed=share, description=stage))


def print_report(report: dict[str, Any]) -> None:
    from model_store.inspection.render import render_text
    from model_store.inspection.report import report_of

    console.print(render_text(report_of(report), "zh"), markup=False, highlight=False)
    console.print(render_text(report_of(report), "en"), markup=False, highlight=False)


def printed(render: Callable[[Any], RenderableType]) -> Callable[[Any], None]:
    """A printer for people of what the market answered."""
    return cli_text.printer(console, render)


def login(url: Annotated[str, typer.Argument(help="http://127.0.0.1:8000")],
          key: Annotated[str, typer.Option(prompt=True, hide_input=True)], as_json: Json = False) -> None:  # fmt: skip
    """Remember a market and your key for the other commands."""
    with told(as_json), Market(url, key) as market:
        me = market.me()
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    path.write_text(json.dumps({"url": url, "key": key}), encoding="utf-8")
    show(me, as_json, lambda done: console.print(f"✓ {done['organisation']['name_zh']} @ {url}"))


def search(query: Annotated[str, typer.Argument()] = "", task: str | None = None, scenario: str | None = None,
           url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """Search the shelf in Chinese or English: algomart search 轴承故障"""
    facets: dict[str, Any] = {name: value for name, value in (("task", task), ("scenario", scenario)) if value}
    with told(as_json), open_client(url, key) as market:
        answer = market.search(query, **facets)
    show(answer, as_json, printed(cli_text.models))


def publish(path: Path, name: Annotated[str, typer.Option(help="vendor/name")], private: bool = False,
            golden: Annotated[Path | None, typer.Option(help="Folder or zip of samples for a bare model.onnx")] = None,
            url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """Publish a bundle (folder or zip) or a bare model.onnx; prints the inspection report."""
    with told(as_json), open_client(url, key) as market:
        answer = market.publish(path, name, private=private, golden=golden)

    def text(done: Any) -> None:
        print_report(done["report"])
        console.print(f"✓ {done['name']}@{done['version']} {done['state']}")

    show(answer, as_json, text)


def inspect(path: Path, name: Annotated[str, typer.Option(help="vendor/name")], private: bool = False,
            golden: Path | None = None, url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """The report that publishing would give; nothing is kept."""
    with told(as_json), open_client(url, key) as market:
        answer = market.inspect(path, name, private=private, golden=golden)
    show(answer, as_json, lambda done: print_report(done["report"]))
    if not answer["report"]["passed"]:
        raise typer.Exit(1)


def submit(name: str, version: int, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Hand an inspected version to the review queue."""
    with told(as_json), open_client(url, key) as market:
        answer = market.submit(name, version)
    show(answer, as_json, lambda done: console.print(f"✓ {done['name']}@{done['version']} {done['state']}"))


def review(review_id: Annotated[str, typer.Argument(help="Empty: list the queue")] = "",
           approve: Annotated[bool, typer.Option("--approve")] = False,
           send_back: Annotated[str, typer.Option("--return", help="What the vendor has to mend")] = "",
           url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """The operator's queue: list it, approve a version, or return it with a note."""
    with told(as_json), open_client(url, key) as market:
        if not review_id:
            show(market.get("/api/v1/reviews"), as_json, printed(cli_text.reviews))
            return
        if approve == bool(send_back):
            raise typer.BadParameter("say either --approve or --return TEXT")
        verb = "approve" if approve else "return"
        answer = market.post(f"/api/v1/reviews/{review_id}/{verb}", {"note": send_back})
    show(answer, as_json, lambda done: console.print(f"✓ {verb}"))


def use(name: str, inputs: Annotated[str, typer.Argument(help="JSON features, or @file.csv, or @picture.png")],
        url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """Call a model: algomart use vendor/name '{"speed": 120}' · or @rows.csv"""
    with told(as_json), open_client(url, key) as market:
        if inputs.startswith("@") and inputs.endswith(".csv"):
            print(market.use_csv(name, Path(inputs[1:]).read_bytes()), end="")
            return
        if inputs.startswith("@"):
            answer = market.use_image(name, inputs[1:])
        else:
            try:
                features = json.loads(inputs)
            except ValueError as error:
                raise typer.BadParameter(f"not JSON: {error}") from None
            answer = market.use(name, features)
    show(answer, as_json, lambda done: console.print_json(json.dumps(done, ensure_ascii=False)))


def choose(samples: Path, label_column: str = "", task: str | None = None, family: str | None = None,
           url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """Rank the shelf on your own 20–1000 rows (CSV, Parquet) or images (zip, folders as labels)."""
    wanted: dict[str, Any] = {name: value for name, value in (("task", task), ("family", family)) if value}
    with told(as_json), open_client(url, key) as market:
        form = {"label_column": label_column} if label_column else {}
        uploaded = market.upload_samples(samples, **form)
        answer = with_bar(lambda tell: market.choose(uploaded["id"], progress=tell, **wanted), as_json)
    if answer["state"] == "failed":
        with told(as_json):
            raise MarketError(422, answer["error"])
    show(answer, as_json, printed(cli_text.choice))


def adapt(recipe: str, model: str | None = None, samples: Annotated[Path | None, typer.Option()] = None,
          sample_set: str | None = None, label_column: str | None = None, name: str | None = None,
          url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """Adapt a model to your own samples: algomart adapt tabular_calibrate --model vendor/name --samples rows.csv"""
    with told(as_json), open_client(url, key) as market:
        chosen = sample_set or (market.upload_samples(samples)["id"] if samples else None)
        if chosen is None:
            raise typer.BadParameter("say --samples FILE or --sample-set ID")
        request = {"model": model, "sample_set_id": chosen, "label_column": label_column, "name": name}
        given: dict[str, Any] = {field: value for field, value in request.items() if value is not None}
        answer = with_bar(lambda tell: market.adapt(recipe, progress=tell, **given), as_json)
    show(answer, as_json, printed(cli_text.adapted))


def usage(usage_id: Annotated[str, typer.Argument(help="Empty: the latest records")] = "",
          purpose: Annotated[str | None, typer.Option(help="use, trial or adapt only")] = None,
          url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """The usage log; with an id, from the call to its price, voucher line and posting."""
    with told(as_json), open_client(url, key) as market:
        answer = market.trace(usage_id) if usage_id else market.usage(purpose=purpose)
    if usage_id:
        show(answer, as_json, lambda done: console.print_json(json.dumps(done, ensure_ascii=False)))
    else:
        show(answer, as_json, printed(cli_text.usage))


def voucher(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Your organisation's vouchers and what is left of them, in fen."""
    with told(as_json), open_client(url, key) as market:
        answer = market.vouchers()
    show(answer, as_json, printed(cli_text.vouchers))


def keys(create: Annotated[str, typer.Option(help="Name of a new key")] = "",
         revoke: Annotated[str, typer.Option(help="Id of a key to revoke")] = "",
         limit: Annotated[str, typer.Option(help="Id of a key to set limits of")] = "",
         rate: Annotated[int, typer.Option(help="Calls a second; 0: the node's limit only")] = 0,
         burst: Annotated[int, typer.Option(help="Of those, how many at once; 0: what a second allows")] = 0,
         concurrency: Annotated[int, typer.Option(help="Calls in hand; 0: the node's limit only")] = 0,
         url: Url = None, key: Key = None, as_json: Json = False) -> None:  # fmt: skip
    """List, create, limit or revoke API keys."""
    limits = {"rate_per_s": rate, "burst": burst, "concurrency": concurrency}
    with told(as_json), open_client(url, key) as market:
        if create:
            made = market.create_key(create, ("use", "choose", "adapt"), **limits)
            show(made, as_json, lambda done: console.print_json(json.dumps(done, ensure_ascii=False)))
        elif limit:
            show(market.limit_key(limit, **limits), as_json, lambda done: console.print(f"✓ {limit}"))
        elif revoke:
            show(market.revoke_key(revoke), as_json, lambda done: console.print(f"✓ {revoke}"))
        else:
            show(market.keys(), as_json, printed(cli_text.keys))
