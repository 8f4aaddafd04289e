"""`algomart serve`, both kinds. Imports what the base install has, and no more."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import urlsplit

import typer

from model_store.errors import BadInput
from serving.keyless import check_loopback
from serving.node import open_node
from serving.server import check_port
from serving.server import serve as run
from serving.settings import ServingSettings

NAMES_SHOWN = 20


def alone(
    folder: Path | None,
    host: str,
    port: int,
    grpc_port: int,
    home: Path,
    trusted: bool,
    no_key: bool,
    triton_compat: bool,
) -> None:
    """A lone node over bundles. Raises `BadInput` SERVE_WHAT and what `open_node` raises."""
    if folder is None:
        raise _serve_what()
    if grpc_port:
        check_port(host, grpc_port, "ALGOMART_GRPC_PORT")
    if no_key:
        check_loopback(host)
    settings = replace(_of_environment(), triton_compat=triton_compat)
    node = open_node(folder, home, trusted=trusted, keyless=no_key, settings=settings)
    more = " …" if len(node.models) > NAMES_SHOWN else ""
    typer.echo(f"{len(node.models)} 个模型 models: {', '.join(node.models[:NAMES_SHOWN])}{more}")
    typer.echo(f"http://{host}:{port} · 密钥 key: {node.key_path}")
    if no_key:
        typer.secho(
            "注意: 本机任何程序都可不带密钥调用 · NO KEY IS ASKED: any program on this machine may call",
            fg=typer.colors.RED, bold=True, err=True,
        )  # fmt: skip
    if grpc_port:
        typer.echo(f"gRPC: {host}:{grpc_port}")
    run(node.app, host, port, grpc_port=grpc_port, log_level="warning")


def _of_environment() -> ServingSettings:
    if {f"ALGOMART_{each.name.upper()}" for each in fields(ServingSettings)}.isdisjoint(os.environ):
        return ServingSettings()
    from marketplace.settings import Settings  # only here: a node with the defaults is ready sooner without them

    return ServingSettings.of(Settings())


def of_market(
    folder: Path | None, market: str, token: str, host: str, port: int, grpc_port: int, home: Path, triton_compat: bool
) -> None:
    """A node of a market elsewhere. Raises `BadInput` SERVE_WHAT, NODE_TOKEN_MISSING, and what the node raises."""
    if folder is not None or urlsplit(market).scheme not in ("http", "https") or not urlsplit(market).hostname:
        raise _serve_what()
    if not token:
        raise BadInput(
            "NODE_TOKEN_MISSING",
            zh="缺少节点令牌",
            en="a node needs its token",
            remedy_zh="在市场所在机器上运行 algomart node add, 并设置 ALGOMART_NODE_TOKEN",
            remedy_en="run algomart node add on the market's machine, and set ALGOMART_NODE_TOKEN",
            field="token",
        )
    check_port(host, port, "--port")
    if grpc_port:
        check_port(host, grpc_port, "ALGOMART_GRPC_PORT")
    from marketplace.settings import Settings  # only here: a node alone is ready sooner without them
    from serving.remote.link import MarketLink
    from serving.remote.node import open_market_node

    settings = replace(ServingSettings.of(Settings()), triton_compat=triton_compat, mapped_folder=home / "mapped")
    with ExitStack() as stack:
        app = open_market_node(MarketLink(market, token), home, settings, stack)
        typer.echo(f"市场 market: {market}")
        typer.echo(f"http://{host}:{port} · 使用市场的密钥 keys are the market's")
        if urlsplit(market).scheme == "http" and urlsplit(market).hostname not in ("127.0.0.1", "localhost", "::1"):
            typer.secho(
                "注意: 与市场之间未加密, 密钥与令牌可被窃听 · NOT ENCRYPTED: put TLS before the market and say https",
                fg=typer.colors.RED, bold=True, err=True,
            )  # fmt: skip
        run(app, host, port, grpc_port=grpc_port, log_level="warning")


def _serve_what() -> BadInput:
    return BadInput(
        "SERVE_WHAT",
        zh="请给出模型包文件夹, 或用 --market 给出市场地址 (二者其一)",
        en="name a folder of bundles, or a market with --market http(s)://host:port: one of the two",
        remedy_zh="例如 algomart serve bundles/ 或 algomart serve --market https://market.example",
        remedy_en="such as algomart serve bundles/ or algomart serve --market https://market.example",
        field="folder",
    )
