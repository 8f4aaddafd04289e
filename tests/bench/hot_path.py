"""CPU time of one request inside the server process, without sockets: `python -m tests.bench.hot_path`.

Requests are handed to the protocol class as uvloop would hand them over (32 connections, one request each a turn of the
loop) with a transport that drops what is written. Ours has key, lease, journal on, and once more
the access log; the reference is the bench's. `--side algomart --turns N --rounds 1 --short` is for counting
instructions (docs/profiling.md): one side only, so many turns, and every run is taken for a short one, which under
valgrind none is.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.cost import CostEstimate
from serving.http_protocol import fast_protocol
from serving.settings import ServingSettings
from tests.bench.node import KEY, open_bench_node
from tests.bench.reference import application
from tests.bench.tiny import FEATURES, NAME, write_tiny

CONNECTIONS, TURNS, ROUNDS = 32, 400, 9


class Sink(asyncio.Transport):
    """A transport that counts answers and drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.answers = 0
        self.last = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += data.startswith(b"HTTP/1.1 200")
        self.bytes += len(data)
        self.last = bytes(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def requests(headers: str) -> list[bytes]:
    """64 requests of different values and lengths."""
    made = []
    for number in range(64):
        data = [round((number * 7 + k * 3) % 50 / 9.7, number % 7 + 1) for k in range(FEATURES)]
        tensor = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": data}
        body = orjson.dumps({"inputs": [tensor]})
        head = f"POST /v2/models/{NAME.replace('/', '--')}/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n{headers}"
        made.append(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


async def measure(protocols: list[Any], sinks: list[Sink], sent: list[bytes], turns: int) -> float:
    """CPU microseconds a request."""
    done = sum(sink.answers for sink in sinks)
    cpu = time.process_time()
    for turn in range(turns):
        for index, protocol in enumerate(protocols):
            protocol.data_received(sent[(turn + index * 5) % len(sent)])
        done += len(protocols)
        await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
            if sum(sink.answers for sink in sinks) >= done:  # else a key or a lease was asked for again
                break
    return (time.process_time() - cpu) / (turns * len(protocols)) * 1e6


def connect(kind: type, config: uvicorn.Config) -> tuple[list[Any], list[Sink]]:
    state = ServerState()
    state.default_headers = [(b"date", b"Mon, 23 Nov 2026 22:00:00 GMT")]
    protocols = [kind(config=config, server_state=state, app_state={}) for _ in range(CONNECTIONS)]
    sinks = [Sink() for _ in protocols]
    for protocol, sink in zip(protocols, sinks, strict=True):
        protocol.connection_made(sink)
    return protocols, sinks


async def main(folder: Path, only: str, turns: int, rounds: int) -> None:
    app, plane = open_bench_node(folder / "own")
    logged, logged_plane = open_bench_node(folder / "log", ServingSettings(access_log=str(folder / "access.log")))
    await plane.start()
    await logged_plane.start()
    ours, with_log = (
        uvicorn.Config(each, http=fast_protocol(each), loop="uvloop", lifespan="off", access_log=False)
        for each in (app, logged)
    )
    bare = application(str(write_tiny(folder / "tiny.onnx")))
    reference = uvicorn.Config(bare, http=HttpToolsProtocol, loop="uvloop", lifespan="off", access_log=False)
    for config in (ours, with_log, reference):
        config.load()
    own = requests(f"Authorization: Bearer {KEY}\r\n")
    sides = {
        "reference": (*connect(HttpToolsProtocol, reference), requests("")),
        "algomart": (*connect(ours.http_protocol_class, ours), own),
        "with log": (*connect(with_log.http_protocol_class, with_log), own),
    }
    if only:
        sides = {only: sides[only]}
    for protocols, sinks, sent in sides.values():
        protocols[0].data_received(sent[0])
        await asyncio.sleep(0.5)  # loads the model, opens the lease
        await measure(protocols, sinks, sent, 20)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (protocols, sinks, sent) in sides.items():
            found[name].append(await measure(protocols, sinks, sent, turns))
    for name, values in found.items():
        print(
            f"{name:10} median {statistics.median(values):6.2f} µs  best {min(values):6.2f}  worst {max(values):6.2f}"
        )
    if not only:
        print(
            f"ratio {statistics.median(r / a for r, a in zip(found['reference'], found['algomart'], strict=True)):.2f}"
        )
    await plane.stop()
    await logged_plane.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", default="", choices=("reference", "algomart", "with log"))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if options.short:
        CostEstimate.predict_ms = lambda *_: 0.01  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(main(Path(name), options.side, options.turns, options.rounds))
