"""Weights moved out of a bundle's `.onnx` into a file of their own, which ONNX Runtime maps instead of copying.

Many graphs load several times faster so, and hold almost nothing of their own: the pages are the file's, shared by
every process that maps it. What is written here is derived: `<folder>/<digest of the bundle>/`, beside the bundles,
whose own bytes and digest stay as they are. It is written and measured in a child process (`python -m
model_store.mapped`), because a large graph is read in one piece and would hold the interpreter that answers calls; one
for many models, because its start takes five times as long as a model of 10 MB.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from model_store.bundle import MODEL
from model_store.runtime import load_graph, release_memory

LEAST_BYTES = 1 << 20  # of a model's weights; smaller ones load in a millisecond as they are
LEAST_TENSOR_BYTES = 1024  # smaller ones are shapes and biases, which graph optimisers want to see
WORTH_IT = 0.5  # of the weights, what a mapped graph may hold of its own
WEIGHTS = "weights.bin"
MEASURED = "measured.json"
MAX_SAID = 500  # characters of what went wrong
_ALIGNMENT = 64  # bytes: a cache line, and every element type
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class MappedModel:
    """`mapped_bytes`, `prepacked_bytes`: private memory of the graph as it is mapped, and with weights prepacked."""

    path: Path
    mapped_bytes: int
    prepacked_bytes: int


def find_mapped(folder: Path, digest: str) -> MappedModel | None:
    """What was derived from the bundle of this digest; None where nothing was, or where mapping gains nothing."""
    try:
        measured = json.loads((folder / digest / MEASURED).read_bytes())
    except OSError:
        return None
    path = folder / digest / MODEL
    return MappedModel(path, measured["mapped_bytes"], measured["prepacked_bytes"]) if path.is_file() else None


def is_settled(folder: Path, digest: str) -> bool:
    """Whether a model was mapped, or found not to gain."""
    return (folder / digest / MEASURED).is_file()


def write_mapped(model_path: Path, folder: Path, digest: str) -> None:
    """Derive and measure, all or nothing. Blocking; meant for a process of its own. Raises what `load_graph` raises."""
    final = folder / digest
    partial = folder / f".{digest}.{secrets.token_hex(4)}.partial"
    partial.mkdir(parents=True)
    try:
        moved = _move_weights(model_path, partial)
        measured = {"mapped_bytes": 0, "prepacked_bytes": 0}
        if moved:
            measured["mapped_bytes"] = _private_bytes(partial / MODEL, prepack=False)
            measured["prepacked_bytes"] = _private_bytes(partial / MODEL, prepack=True)
        if not moved or measured["mapped_bytes"] > WORTH_IT * moved:
            (partial / MODEL).unlink(missing_ok=True)
            (partial / WEIGHTS).unlink(missing_ok=True)
        (partial / MEASURED).write_text(json.dumps(measured), encoding="utf-8")
        if not final.is_dir():
            os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_weights(model_path: Path, folder: Path) -> int:
    """Write graph and weights apart; answers the bytes moved: 0 where callers may override weights or none is large."""
    import onnx
    from onnx import external_data_helper

    model = onnx.load(str(model_path))
    overridable = {value.name for value in model.graph.input}
    moved = 0
    with (folder / WEIGHTS).open("wb") as weights:
        for tensor in model.graph.initializer:
            if tensor.name in overridable:
                return 0
            if len(tensor.raw_data) < LEAST_TENSOR_BYTES:
                continue
            weights.write(b"\0" * (-weights.tell() % _ALIGNMENT))
            offset, length = weights.tell(), weights.write(tensor.raw_data)
            external_data_helper.set_external_data(tensor, WEIGHTS, offset=offset, length=length)
            tensor.ClearField("raw_data")
            moved += length
        weights.flush()
        os.fsync(weights.fileno())
    (folder / MODEL).write_bytes(model.SerializeToString())
    return moved


def _private_bytes(path: Path, prepack: bool) -> int:
    release_memory()
    before = _anonymous_bytes()
    graph = load_graph(path, prepack=prepack)
    release_memory()
    held = _anonymous_bytes() - before
    del graph
    return max(0, held)


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def answer_orders(orders: TextIO, answers: TextIO) -> None:
    """A line {"model", "folder", "digest"} each, answered by a line {"said"}: empty, or why it could not be done."""
    for line in orders:
        order = json.loads(line)
        try:
            write_mapped(Path(order["model"]), Path(order["folder"]), order["digest"])
            said = ""
        except Exception as error:  # one model's trouble is not the next one's
            said = f"{type(error).__name__}: {error}"
        print(json.dumps({"said": said[:MAX_SAID]}), file=answers, flush=True)


if __name__ == "__main__":
    os.nice(_NICENESS)
    answer_orders(sys.stdin, sys.stdout)
