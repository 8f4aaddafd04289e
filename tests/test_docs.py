"""The documentation, run: every block of its pages against a live market, every link, every table.

In README*.md, docs/quickstart-*.md, docs/http-api.md, docs/grpc.md and docs/configuration.md a block fenced `sh` or
`python` is run, in the order of the page, in one folder a page. Exported variables last to the page's end. Three things
differ:

- a block under the line `<!-- not run: REASON -->` is not run;
- a block fenced `sh refused CODE` has to fail and to say CODE;
- `http://127.0.0.1:8000` stands for the test's market, `127.0.0.1:8001` for its gRPC port, and `.algomart` for its
  folder.

Every other fence (`text`, `json`, …) shows what was printed, or a file, and is not run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs_facts import ROOT, refusal_codes
from tests.live import LiveMarket

PAGES = [
    *sorted(ROOT.glob("README*.md")),
    *sorted((ROOT / "docs").glob("quickstart-*.md")),
    ROOT / "docs" / "http-api.md",
    ROOT / "docs" / "grpc.md",
    ROOT / "docs" / "nodes.md",
    ROOT / "docs" / "vouchers.md",
    ROOT / "docs" / "reports.md",
    ROOT / "docs" / "findings.md",
    ROOT / "docs" / "observability.md",
    ROOT / "docs" / "configuration.md",
]
FENCE = re.compile(r"^(?P<skip><!-- not run: .+ -->\n)?```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)")
BLOCK_S = 120
PRELUDE = 'set -eu -o pipefail; curl() { command curl --fail-with-body "$@"; }; [ ! -f .exports ] || . ./.exports\n'


@dataclass(frozen=True)
class Block:
    """`language` sh or python; `refused` the code it has to be refused with, or ""."""

    language: str
    refused: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(content):
        language, _, rest = found["kind"].partition(" ")
        if language in ("sh", "bash", "python") and not found["skip"]:
            line = content.count("\n", 0, found.start()) + 1
            yield Block(language, rest.removeprefix("refused ").strip(), found["text"], line)


def run(
    block: Block, folder: Path, market: LiveMarket, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    text = block.text.replace("http://127.0.0.1:8000", market.url)
    text = text.replace("127.0.0.1:8001", f"127.0.0.1:{market.grpc_port}")
    if block.language == "python":
        script = folder / "block.py"
        script.write_text(text, encoding="utf-8")
        text = f"{shlex.quote(sys.executable)} {script.name}"
    keep = "" if block.language == "python" else "\nexport -p > .exports"
    return subprocess.run(
        ["bash", "-c", PRELUDE + text + keep],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=BLOCK_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_works(page: Path, live_market: LiveMarket, tmp_path: Path) -> None:
    (tmp_path / ".algomart").symlink_to(live_market.home)
    scripts = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ALGOMART_", "MLFLOW_"))}
    environment |= {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C.UTF-8",
        "ALGOMART_URL": live_market.url,
        "ALGOMART_KEY": live_market.keys["factory"],
    }
    environment.pop("XDG_CONFIG_HOME", None)
    for block in blocks(page):
        done = run(block, tmp_path, live_market, environment)
        said = done.stdout + done.stderr
        if block.refused:
            assert done.returncode != 0, f"{page.name}:{block.line} was not refused\n{said}"
            assert block.refused in said, f"{page.name}:{block.line}\n{said}"
        else:
            assert done.returncode == 0, f"{page.name}:{block.line}\n{said}"
            assert "Traceback" not in said, f"{page.name}:{block.line}\n{said}"


def test_every_relative_link_leads_somewhere() -> None:
    pages = [*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)} → {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_public_refusal_is_in_the_api_s_page() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (\d{3}|job|402, 409) \|", page, re.M))
    codes = refusal_codes()
    taken = {"EMAIL_TAKEN", "SLUG_TAKEN", "USCC_TAKEN"}  # built from the field's name
    assert set(told) == set(codes) | taken
    wrong = {name for name, code in codes.items() if code.status > 200 and str(code.status) != told[name]}
    assert wrong == set()


def test_every_route_of_the_json_api_is_in_the_api_s_page(live_market: LiveMarket) -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([A-Z]+) (/api/v1/[^`]*)`", page, re.M))
    paths = live_market.client().get("/openapi.json").json()["paths"]
    assert told == {(method.upper(), path) for path, ways in paths.items() for method in ways if path[:5] == "/api/"}
