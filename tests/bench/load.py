"""Load on one server: `wrk` where it is there, else a small generator of our own; CPU and memory of its processes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_SCALE = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Target:
    """Where to send what. `headers` beside the content type. `body` is the one that is checked; the load sends those of
    `bodies` in turn, so that no two requests in a row are alike, nor of one length."""

    url: str
    body: bytes
    headers: dict[str, str]
    bodies: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One round: answers a second, latency in ms; CPU microseconds an answer and MiB of the whole process tree."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int
    cpu_us: float
    rss_mib: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measure(
    target: Target, pid: int, seconds: float, connections: int, folder: Path, pinned: Sequence[str] = ()
) -> Measured:
    """Load the target for `seconds` over `connections`; `pid` is the root of the server's processes."""
    before = cpu_seconds(pid)
    if shutil.which("wrk"):
        count, failures, p50, p99, took = _wrk(target, seconds, connections, folder, pinned)
    else:
        count, failures, p50, p99, took = asyncio.run(_generate(target, seconds, connections))
    used = cpu_seconds(pid) - before
    return Measured(count / took, p50, p99, failures, used / max(count, 1) * 1e6, rss_mib(pid))


def processes(pid: int) -> list[psutil.Process]:
    if not pid:
        return []
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree so far."""
    total = 0.0
    for process in processes(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def rss_mib(pid: int) -> float:
    total = 0
    for process in processes(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / (1 << 20)


def _wrk(
    target: Target, seconds: float, connections: int, folder: Path, pinned: Sequence[str]
) -> tuple[int, int, float, float, float]:
    script = folder / f"post-{os.getpid()}.lua"
    headers = {"Content-Type": "application/json", **target.headers}
    bodies = ", ".join(f'"{_lua(body)}"' for body in target.bodies or (target.body,))
    lines = ["wrk.method = 'POST'"]
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in headers.items()]
    lines += [
        f"local bodies, requests, at = {{{bodies}}}, {{}}, 0",
        "init = function() for i, body in ipairs(bodies) do requests[i] = wrk.format(nil, nil, nil, body) end end",
        "request = function() at = at % #requests + 1 return requests[at] end",
    ]
    script.write_text("\n".join(lines) + "\n")
    command = [
        *pinned, "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency",
        "-s", str(script), target.url,
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    script.unlink()
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    assert total is not None, text
    took_s = float(total[2]) * _SCALE[total[3]] / 1000
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failures = (int(failed[1]) if failed else 0) + (sum(map(int, broken.groups())) if broken else 0)
    return int(total[1]), failures, _percentile(text, "50"), _percentile(text, "99"), took_s


def _lua(content: bytes) -> str:
    """As it stands between quotes in Lua."""
    return "".join(f"\\{byte:03d}" for byte in content)


def _percentile(text: str, which: str) -> float:
    found = re.search(rf"^\s+{which}%\s+([\d.]+)(us|ms|s|m)", text, re.MULTILINE)
    return float(found[1]) * _SCALE[found[2]] if found else float("nan")


async def _generate(target: Target, seconds: float, connections: int) -> tuple[int, int, float, float, float]:
    """Without wrk: as many keep-alive connections, each sending its next request when it has its answer."""
    host, port, path = _split(target.url)
    headers = {
        "Host": host,
        "Content-Type": "application/json",
        **target.headers,
    }
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def message_of(body: bytes) -> bytes:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    messages = [message_of(body) for body in target.bodies or (target.body,)]
    latencies: list[float] = []
    failures = 0
    until = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal failures
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < until:
            started = time.perf_counter()
            writer.write(messages[len(latencies) % len(messages)])
            answer = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            await reader.readexactly(int(size[1]) if size else 0)
            latencies.append((time.perf_counter() - started) * 1000)
            failures += not answer.startswith(b"HTTP/1.1 2")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    took = time.perf_counter() - started
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return len(latencies), failures, cuts[49], cuts[98], took


def _split(url: str) -> tuple[str, int, str]:
    rest = url.removeprefix("http://")
    address, _, path = rest.partition("/")
    host, _, port = address.partition(":")
    return host, int(port or 80), "/" + path


def medians(rounds: Sequence[Measured]) -> dict[str, Any]:
    """The median of each figure over the rounds."""
    return {name: round(statistics.median(getattr(each, name) for each in rounds), 3) for name in rounds[0].as_dict()}
