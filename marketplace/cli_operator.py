"""`algomart operator`: the operator's people, from the machine that the market runs on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marketplace.settings import Settings
from model_store.errors import NotFound, Refusal

if TYPE_CHECKING:
    from sqlalchemy import Engine

Home = Annotated[Path | None, typer.Option(help="数据目录 · Folder of all data (ALGOMART_HOME)")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts · 输出 JSON")]
Email = Annotated[str, typer.Argument(help="邮箱 · E-mail address, the login name")]
operator = typer.Typer(
    no_args_is_help=True,
    help="""运营人员 · The operator's people, managed on the machine that the market runs on.

    发券须由两人完成, 所以运营人员不能互相邀请或重设密码。Two persons issue a voucher, so operators cannot invite
    each other or reset each other's passwords; whoever runs the machine does. The market may be running meanwhile.

    algomart operator invite lin@city.example --name 林复核

    algomart operator list
    """,
)


@operator.command("list")
def list_all(home: Home = None, as_json: AsJson = False) -> None:
    """全部运营人员 · Everybody in the operator's organisation."""
    from marketplace.operators import list_operators

    with database(home, as_json) as engine:
        people = [{"email": each.email, "name": each.name, "status": each.status} for each in list_operators(engine)]
    if as_json:
        typer.echo(json.dumps({"items": people, "total": len(people)}, ensure_ascii=False))
        return
    for each in people:
        typer.echo(f"{each['email']}  {each['name']}  {each['status']}")


@operator.command()
def invite(
    email: Email,
    name: Annotated[str, typer.Option(help="姓名 · Name, as audit rows show it")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """邀请 · Invite an operator: prints the link under which they set a password, once."""
    from marketplace.operators import invite_operator

    with database(home, as_json) as engine:
        _print_link(invite_operator(engine, email, name), as_json)


@operator.command()
def reset(email: Email, home: Home = None, as_json: AsJson = False) -> None:
    """重设密码 · A new link for who forgot the password, or lost the invitation."""
    from marketplace.operators import reset_operator

    with database(home, as_json) as engine:
        _print_link(reset_operator(engine, email), as_json)


@operator.command()
def disable(email: Email, home: Home = None, as_json: AsJson = False) -> None:
    """停用 · Shut an operator out: sessions and keys end."""
    from marketplace.operators import disable_operator

    with database(home, as_json) as engine:
        member = disable_operator(engine, email)
        typer.echo(json.dumps({"email": member.email, "status": member.status}) if as_json else f"✓ {member.email}")


def _print_link(link: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(link))
        return
    typer.echo(f"{link['email']}\n{Settings().url}{link['path']}")
    typer.echo("只显示这一次, 请交给本人 · Shown this once: hand it to them alone")


@contextmanager
def database(home: Path | None, as_json: bool) -> Iterator[Engine]:
    """The market's database; a refusal inside ends the command with status 1, told in both languages or as JSON."""

    from marketplace.db import open_database

    settings = Settings() if home is None else Settings().model_copy(update={"home": home})
    try:
        if not settings.database_url and not (settings.home / "market.db").exists():
            raise NotFound(
                "NO_MARKET",
                zh=f"{settings.home} 里没有市场",
                en=f"there is no market in {settings.home}",
                remedy_zh="用 --home 指定数据目录, 或先运行 algomart up",
                remedy_en="name its folder with --home, or run algomart up first",
            )
        engine = open_database(settings.sql_url)
        try:
            yield engine
        finally:
            engine.dispose()
    except Refusal as refusal:
        if as_json:
            typer.echo(json.dumps({"error": refusal.as_dict()}, ensure_ascii=False))
        else:
            typer.echo(f"{refusal.code}: {refusal.zh} — {refusal.remedy_zh}", err=True)
            typer.echo(f"{refusal.en} — {refusal.remedy_en}", err=True)
        raise typer.Exit(1) from None
