"""The command line: `algomart up` starts a market."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="AlgoMart 算法超市")


@app.callback()
def root() -> None:
    """AlgoMart 算法超市: a self-hosted marketplace for industrial models."""


@app.command()
def up(
    home: Annotated[Path | None, typer.Option(help="Folder of all data (ALGOMART_HOME)")] = None,
    port: Annotated[int | None, typer.Option(help="Port (ALGOMART_PORT)")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (ALGOMART_HOST)")] = None,
    demo: Annotated[bool | None, typer.Option("--demo/--no-demo", help="Demonstration organisations and shelf")] = None,
) -> None:
    """Start the market and keep it in the foreground."""
    from marketplace.settings import Settings
    from marketplace.start import run_market

    given = {"home": home, "port": port, "host": host, "demo": demo}
    settings = Settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    raise typer.Exit(run_market(settings))


@app.command()
def tour(
    calls: Annotated[int, typer.Option(min=2, help="Calls in each settlement mode")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the receipt as JSON")] = False,
) -> None:
    """Walk the whole main job on a fresh market, in both settlement modes, and print the receipt."""
    import json

    from marketplace.tour import print_receipt, run_tour

    receipt = run_tour(calls=calls, say=(lambda line: None) if as_json else print)
    if as_json:
        print(json.dumps(receipt, ensure_ascii=False))
    else:
        print_receipt(receipt)
    raise typer.Exit(0 if receipt["ledger_balanced"] else 1)


def main() -> None:
    """The entry point of the `algomart` command."""
    app()


if __name__ == "__main__":
    main()
