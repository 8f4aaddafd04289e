"""`algomart node`: serving nodes elsewhere, admitted from the machine that the market runs on."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from marketplace.cli_client import Json, Key, Url, open_client, show, told
from marketplace.cli_operator import AsJson, Home, database
from marketplace.settings import Settings

Name = Annotated[str, typer.Argument(help="节点名 · The node's name, such as edge-1")]
node = typer.Typer(
    no_args_is_help=True,
    help="""推理节点 · Serving nodes elsewhere: an edge box in a factory, another machine for the cloud.

    节点按市场的密钥与价格提供调用, 从市场领取额度, 并把用量日志传回市场入账。A node answers calls with the market's
    keys and prices, takes leases from it and ships its usage journal back, where every call is charged.

    algomart node add edge-1                     (here: prints the node's token, once)

    ALGOMART_NODE_TOKEN=amn_… algomart serve --market https://market.example     (there)
    """,
)


@node.command()
def add(
    name: Name,
    organisation: Annotated[
        str, typer.Option(help="单位短名: 只为该单位服务 · Short name: serve this organisation's keys only")
    ] = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """接入节点 · Admit a node: prints its token, once."""
    from marketplace.nodes.registry import add_node

    with database(home, as_json) as engine:
        _print_token(name, add_node(engine, name, organisation), as_json)


@node.command()
def renew(name: Name, home: Home = None, as_json: AsJson = False) -> None:
    """换发令牌 · A new token, where one was lost or may be known to others; the old one ends at once."""
    from marketplace.nodes.registry import renew_node

    with database(home, as_json) as engine:
        _print_token(name, renew_node(engine, name), as_json)


@node.command()
def revoke(name: Name, home: Home = None, as_json: AsJson = False) -> None:
    """吊销 · Shut a node out. What it has journalled and not shipped is taken once it is renewed."""
    from marketplace.nodes.registry import revoke_node

    with database(home, as_json) as engine:
        revoke_node(engine, name)
    typer.echo(json.dumps({"name": name, "state": "revoked"}) if as_json else f"✓ {name}")


@node.command("list")
def list_all(home: Home = None, as_json: AsJson = False) -> None:
    """全部节点 · Every node, whose calls it serves, and its open epoch."""
    from marketplace.db import reading
    from marketplace.nodes.registry import list_nodes
    from marketplace.vouchers.nodes import open_epochs

    with database(home, as_json) as engine, reading(engine) as session:
        items = [
            {
                "name": row.name,
                "organisation_id": row.organisation_id,
                "state": "admitted" if row.revoked_at_ms is None else "revoked",
                "open_epochs": [each.epoch for each in open_epochs(session, row.name)],
            }
            for row in list_nodes(session)
        ]
    if as_json:
        typer.echo(json.dumps({"items": items, "total": len(items)}))
        return
    for each in items:
        typer.echo(f"{each['name']}  {each['organisation_id'] or '*'}  {each['state']}  {each['open_epochs']}")


@node.command("write-off")
def write_off(
    name: Name,
    epoch: Annotated[int, typer.Argument(help="期号 · The epoch whose journal is lost")],
    reason: Annotated[str, typer.Option(help="原因 · Why nobody will ever bring it")],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """提出核销 · Propose to give back what a lost node's leases hold; another operator approves it."""
    with told(as_json), open_client(url, key) as market:
        made = market.post(f"/api/v1/nodes/{name}/epochs/{epoch}/write-off", {"reason": reason})
        show(made, as_json, _print_write_off)


@node.command("write-offs")
def write_offs(
    approve: Annotated[str, typer.Option(help="批准 (须另一人) · Approve this one; takes another person")] = "",
    decline: Annotated[str, typer.Option(help="不予核销 · Decline this one")] = "",
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """核销台账 · The register of write-offs; with --approve or --decline, decide one."""
    with told(as_json), open_client(url, key) as market:
        for decision, row_id in (("approve", approve), ("decline", decline)):
            if row_id:
                show(market.post(f"/api/v1/write-offs/{row_id}/{decision}"), as_json, _print_write_off)
        if not approve and not decline:
            show(market.get("/api/v1/write-offs"), as_json, _print_write_offs)


def _print_write_offs(found: dict[str, Any]) -> None:
    for row in found["items"]:
        _print_write_off(row)


def _print_write_off(row: dict[str, Any]) -> None:
    typer.echo(f"{row['id']}  {row['node']}-{row['epoch']}  {row['state']}  {row['released_fen']} fen  {row['reason']}")


def _print_token(name: str, token: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"name": name, "token": token}))
        return
    typer.echo(f"ALGOMART_NODE_TOKEN={token} algomart serve --market {Settings().url}")
    typer.echo("只显示这一次 · Shown this once: put it on the node, readable by it alone")
