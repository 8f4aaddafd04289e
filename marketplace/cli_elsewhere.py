"""Commands that are imported when they are asked for: `algomart serve` is ready sooner without the others' imports."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

# Commands that talk to a market, functions of the same name in their module; the order is that of `--help`.
OF_A_MARKET = (
    "login", "search", "publish", "inspect", "submit", "review", "use", "choose", "adapt", "usage", "voucher", "keys",
)  # fmt: skip
MARKET_MODULE = "marketplace.cli_client"
GROUPS = {
    name: f"marketplace.cli_{name}" for name in ("operator", "node", "reports", "findings", "journal", "application")
}  # groups of commands, each a `typer.Typer` of its name in that module


class AlgomartGroup(TyperGroup):
    """The application's commands: its own, and those of other modules."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports the command's module at most; None where there is no such command."""
        if cmd_name not in self.commands and (cmd_name in OF_A_MARKET or cmd_name in GROUPS):
            self.commands[cmd_name] = _load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        elsewhere = {*OF_A_MARKET, *GROUPS}
        own = [name for name in super().list_commands(ctx) if name not in elsewhere]
        return [*OF_A_MARKET, *own, *GROUPS]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """An unknown command is answered with those of similar names, so all of them must be there."""
        if self.get_command(ctx, args[0]) is None:
            for name in self.list_commands(ctx):
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    found = getattr(import_module(GROUPS.get(name, MARKET_MODULE)), name)
    holder = typer.Typer()
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        holder.command(name)(found)
        holder.callback()(_nothing)  # a holder of one command and nothing else would be taken for that command
    group: Any = typer.main.get_command(holder)
    return group.commands[name]


def _nothing() -> None:
    """Of the holder."""
