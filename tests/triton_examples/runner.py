"""Runs Triton's public client examples, as they are, against this server and says how each ended.

A script passes where it ends with 0 and, if it has a `PASS` to print, has printed one. It does not apply where its last
words are this server's refusal of an extension that it does not offer, or where it asks for what no server can give it
here (a GPU, a fixed address). All else is a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from tests.triton_examples.models import MODELS, PICTURE_MODEL
from tests.triton_examples.node import Node

Outcome = Literal["passed", "failed", "not applicable"]
LIMIT_S = 60.0
BEYOND = {  # what stands in a script → why it is not run
    r"import tritonclient\.utils\.cuda_shared_memory": "CUDA shared memory: needs a GPU, and is not offered",
    r"repeat_int32": "decoupled model: one request has one answer here",
    r"preprocess_inception_ensemble": "Triton's ensemble of TensorFlow graphs: pre-processing is part of a bundle here",
    r"vllm": "a vLLM backend: there is none here",
}
NOT_OFFERED = re.compile(r"this server does not offer ([^.;·\n]+)")


@dataclass(frozen=True)
class Result:
    """How one script ended; `why` is empty where it passed."""

    name: str
    outcome: Outcome
    why: str = ""
    ways: int = 1  # how often it was run, each time with other arguments


def run_all(folder: Path, scratch: Path) -> Iterator[Result]:
    """Every script of `folder` by name, against nodes that keep their files under `scratch`."""
    picture = scratch / "picture.png"
    scratch.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").save(picture)
    with nodes_in(scratch) as nodes:
        for script in sorted(folder.glob("*.py")):
            yield run_script(script, picture, nodes)


class Nodes:
    """A node for each number of models: Triton's examples of model control count what the repository holds."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started: dict[int, Node] = {}

    def of(self, models: int) -> Node:
        """The running node that lists so many models."""
        if models not in self._started:
            node = Node(self._scratch / f"node-{models}", models)
            node.start()
            self._started[models] = node
        return self._started[models]

    def stop(self) -> None:
        for node in self._started.values():
            node.stop()


@contextlib.contextmanager
def nodes_in(scratch: Path) -> Iterator[Nodes]:
    """Nodes that are stopped at the end of the block."""
    nodes = Nodes(scratch)
    try:
        yield nodes
    finally:
        nodes.stop()


def run_script(script: Path, picture: Path, nodes: Nodes) -> Result:
    """Once for each of the ways that the script has; the first that does not pass decides."""
    text = script.read_text(encoding="utf-8")
    for pattern, why in BEYOND.items():
        if re.search(pattern, text):
            return Result(script.name, "not applicable", why, 0)
    if "--url" not in text:
        return Result(script.name, "not applicable", "takes no address: it always calls localhost:8000 or 8001", 0)
    node = nodes.of(models_counted(text))
    url = f"localhost:{node.grpc_port if 'localhost:8001' in text else node.port}"
    ways = ways_of(text, picture)
    for more in ways:
        result = judged(script.name, text, *run(script, ["-u", url, *more]))
        if result.outcome != "passed":
            return result
    return Result(script.name, "passed", ways=len(ways))


def models_counted(text: str) -> int:
    """How many models the script expects in the repository; all of ours where it does not count."""
    found = re.search(r"get_model_repository_index\(\)[^\n]*!= (\d+)", text)
    return int(found[1]) if found else len(MODELS)


def ways_of(text: str, picture: Path) -> list[list[str]]:
    """The arguments beside the address, for each time that the script is run."""
    if "image_filename" in text:
        plain = ["-m", PICTURE_MODEL, "-c", "3", "-s", "INCEPTION"]
        ways = [plain, [*plain, "-a"], [*plain, "-b", "4"]]
        if "localhost:8001" in text:
            ways.append([*plain, "--streaming"])
        return [[*way, str(picture)] for way in ways]
    ways = [[]]
    if "--request-compression-algorithm" in text:
        names = ("--request-compression-algorithm", "--response-compression-algorithm")
        ways += [[word for name in names for word in (name, kind)] for kind in ("gzip", "deflate")]
    if "--grpc-compression-algorithm" in text:
        ways += [["-C", "gzip"], ["-C", "deflate"]]
    return ways


def run(script: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of one run; a status of -1 where it did not end in time."""
    command = [sys.executable, script.name, *arguments]
    try:
        done = subprocess.run(
            command, cwd=script.parent, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=LIMIT_S, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return -1, f"{said}\ndid not end within {LIMIT_S:g} s"
    return done.returncode, done.stdout


def environment() -> dict[str, str]:
    """Ours without proxies, and without the repository on Python's path: the scripts see a client's world."""
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name != "PYTHONPATH"}


def judged(name: str, text: str, status: int, said: str) -> Result:
    """What the end of one run means."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if status == 0 and ("PASS" not in text or "PASS" in said):
        return Result(name, "passed")
    if status == 0:
        return Result(name, "failed", f"ended with 0 but printed no PASS; its last words: {last[:200]}")
    refused = NOT_OFFERED.search("\n".join(lines[-4:]))
    if refused:
        return Result(name, "not applicable", f"not offered: {refused[1].strip()}")
    return Result(name, "failed", f"ended with {status}: {last[:300]}")
