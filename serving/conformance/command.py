"""What `algomart conformance` does: write the kit's models, examine a server, print and file the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from model_store.errors import BadInput
from serving.conformance.export import export as write_models
from serving.conformance.report import junit_of, print_report
from serving.conformance.run import run_checks

PIPE_WIDTH = 160


def examine(
    url: str | None,
    model: str | None,
    key: str | None,
    headers: Sequence[str],
    only: str | None,
    prefix: str,
    as_json: bool,
    junit: Path | None,
    export: Path | None,
) -> bool:
    """Whether the server conforms; true where only the models were to be written. Raises `BadInput`."""
    if export is not None:
        write_models(export, prefix)
        if url is None:
            print(f"{export}/{{algomart,triton,triton-python,mlserver,kserve}}")
            return True
    if url is None:
        raise _url_missing()
    report = run_checks(url, _headers_of(key, headers), model=model, prefix=prefix, only=only)
    if junit is not None:
        junit.write_bytes(junit_of(report))
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        print_report(report, console)
    return report.conforms


def _headers_of(key: str | None, headers: Sequence[str]) -> dict[str, str]:
    found = {} if key is None else {"authorization": f"Bearer {key}"}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise _header_invalid(header)
        found[name.strip().lower()] = value.strip()
    return found


def _url_missing() -> BadInput:
    return BadInput(
        "URL_MISSING",
        zh="没有给出服务地址",
        en="there is no server to check",
        remedy_zh="请给出地址, 例如 algomart conformance http://127.0.0.1:8001; 只写出测试模型用 --export",
        remedy_en="name one: algomart conformance http://127.0.0.1:8001; --export alone writes the models",
        field="url",
    )


def _header_invalid(header: str) -> BadInput:
    return BadInput(
        "HEADER_INVALID",
        zh=f"“{header[:80]}”不是 NAME:VALUE",
        en=f"{header[:80]!r} is not NAME:VALUE",
        remedy_zh="请写作 --header 'x-tenant: a'",
        remedy_en="write it as --header 'x-tenant: a'",
        field="header",
    )
