"""What the documentation's tables must agree with, read from the code: refusals with their texts, settings, routes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model_store import errors
from model_store.errors import Refusal

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("model_store", "serving", "adapters", "marketplace")
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
STATUS = {
    name: leaf.status for name, leaf in vars(errors).items() if isinstance(leaf, type) and issubclass(leaf, Refusal)
}
STATUS["correction_refused"] = 409
STATUS["error_of"] = 200  # the error of a job, inside the job's own document
# Modules whose refusals are looked up by code in a table: each code is a key or a first argument there.
TABLES = (
    "marketplace/vouchers/refusals.py", "marketplace/vouchers/write_off_refusals.py",
    "marketplace/keys/authentication.py",
)  # fmt: skip


@dataclass(frozen=True)
class Code:
    """One refusal: `name`, HTTP `status` (0: told by a table of refusals), `zh` and `en` as far as the source tells."""

    name: str
    status: int
    zh: str = ""
    en: str = ""


def refusal_codes() -> dict[str, Code]:
    """Every code that a refusal is raised with, by name."""
    found: dict[str, Code] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for code in _raised(tree):
                if code.name not in found or not found[code.name].en:
                    found[code.name] = code
            if path.relative_to(ROOT).as_posix() in TABLES:
                for name, zh, en in _tabled(tree):
                    found.setdefault(name, Code(name, 0, zh, en))
    return found


def _raised(tree: ast.AST) -> Iterator[Code]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if called not in STATUS:
            continue
        texts = {each.arg: _text(each.value) for each in node.keywords}
        if called in ("error_of", "correction_refused"):
            texts |= dict(zip(("zh", "en"), map(_text, node.args[1:3]), strict=False))
        for part in ast.walk(node.args[0]):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value):
                yield Code(part.value, STATUS[called], texts.get("zh", ""), texts.get("en", ""))


def _tabled(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(tree):
        pairs: list[tuple[ast.expr | None, list[ast.expr]]] = []
        if isinstance(node, ast.Dict):
            pairs = [(key, list(getattr(value, "elts", getattr(value, "args", [])))) for key, value in
                     zip(node.keys, node.values, strict=True)]  # fmt: skip
        elif isinstance(node, ast.Call | ast.Tuple):
            parts = node.args if isinstance(node, ast.Call) else node.elts
            pairs = [(parts[0], list(parts[1:]))] if parts else []
        for key, rest in pairs:
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and CODE.fullmatch(key.value):
                texts = [_text(each) for each in rest if isinstance(each, ast.Constant | ast.JoinedStr | ast.BinOp)]
                zh = next((text for text in texts if re.search("[一-鿿]", text)), "")
                en = next((text for text in texts if text and text.isascii()), "")
                yield key.value, zh, en


def _text(node: ast.expr) -> str:
    """A text as the source has it; what is filled in reads `…`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return ""
