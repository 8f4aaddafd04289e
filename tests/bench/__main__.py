"""`python -m tests.bench`: the market against the bare reference and its peers, side by side on this machine.

Every server answers the same requests of the same tiny model, checked against in-process ONNX Runtime first. Rounds are
interleaved, so that a machine that changes its mood changes it for all; the ratio is the median of each round's ratio
to the reference beside it. Absolute figures mean little: quote ratios and CPU microseconds.

    --seconds N       of load in each round (default 3)
    --rounds N        (default 9)
    --connections N   (default 32)
    --peers a,b       of bentoml, litserve, mlserver, kserve, triton, ray, ray-default, mlflow (default all); or "none"
    --bare            a bare asyncio.Protocol + httptools + ONNX Runtime too
    --node            the lone data plane over the market in memory too
    --url U --key K   a market that is running already (with the model NAME published) instead of one of our own
    --pin             servers on one core, the load on another (hard on designs with several processes)
    --also a,b        of lag (the event loop's, while jobs run), ingest and search; "none" for none (default all)
    --out FOLDER      for bench.json and bench.md, and lag.json and lag.md (default build/bench)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.bench import bench_ingest, bench_search, lag, load
from tests.bench.market import NAME, ingested, open_market, settled
from tests.bench.servers import BODIES, BODY, DATA, PACKAGES, Server, bare, lone_node, peer, reference
from tests.bench.tiny import write_tiny

TARGET_RATIO = 0.6


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="algomart-bench-") as scratch:
        folder = Path(scratch)
        model = write_tiny(folder / "tiny.onnx")
        expected = expected_outputs(model)
        can_pin = options.pin and shutil.which("taskset") and len(os.sched_getaffinity(0)) >= 2
        cores = sorted(os.sched_getaffinity(0))
        pin_server = ["taskset", "-c", str(cores[0])] if can_pin else []
        pin_load = ["taskset", "-c", str(cores[1])] if can_pin else []
        servers: list[Server] = []
        try:
            for make in plan(options, model, folder, pin_server, expected):
                servers.append(make())
                print(f"{servers[-1].name}: first right answer after {servers[-1].start_s:.1f} s", flush=True)
            rounds, lags = run_rounds(servers, options, folder, pin_load)
            ledger = {"lag_ms_after_a_round": lags, **settled(servers[1])} if lags else {}
        finally:
            for server in servers:
                server.stop()
    result = summary(servers, rounds, options, bool(can_pin)) | {"ledger": ledger}
    result |= also(options)
    write(result, options.out)
    return 0 if result["passed"] else 1


def also(options: argparse.Namespace) -> dict[str, Any]:
    """What is measured beside the table, one after the other on a machine that the servers have left."""
    wanted = options.also.replace("none", "").split(",")
    found: dict[str, Any] = {}
    if "search" in wanted:
        found["search"] = bench_search.bench_search()
    if "ingest" in wanted:
        found["ingest"] = bench_ingest.bench_ingest()
    if "lag" in wanted:
        lag.main(["--out", str(options.out)])
        found["lag"] = json.loads((options.out / "lag.json").read_text())
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--peers", default=",".join(PACKAGES))
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--no-market", action="store_true")
    parser.add_argument("--url", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--also", default="lag,ingest,search")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return parser.parse_args(arguments)


def expected_outputs(model: Path) -> list[float]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    values: list[float] = session.run(["y"], {"x": np.array([DATA], np.float32)})[0].ravel().tolist()
    return values


def plan(
    options: argparse.Namespace, model: Path, folder: Path, pinned: Sequence[str], expected: Sequence[float]
) -> list[Any]:
    """What starts each server, in the order of the table."""

    def started(server: Server) -> Server:
        server.start(expected)
        return server

    makers: list[Any] = [lambda: started(reference(model, folder, pinned))]
    if options.url:
        makers.append(lambda: running_market(options.url, options.key, folder))
    elif not options.no_market:
        makers.append(lambda: open_market(folder / "home", folder, pinned, expected))
    if options.bare:
        makers.append(lambda: started(bare(model, folder, pinned)))
    if options.node:
        makers.append(lambda: started(lone_node(folder, pinned)))
    for name in filter(None, options.peers.replace("none", "").split(",")):
        makers.append(lambda name=name: started(peer(name, model, folder, pinned)))
    return makers


def running_market(url: str, key: str, folder: Path) -> Server:
    """A market that somebody else started; its processes are not ours to measure or to end."""
    target = load.Target(f"{url.rstrip('/')}/v2/models/{NAME.replace('/', '--')}/infer", BODY, {})
    server = Server("algomart", [], target, folder)
    server.target = load.Target(target.url, BODY, {"Authorization": f"Bearer {key}"}, BODIES)
    return server


def run_rounds(
    servers: Sequence[Server], options: argparse.Namespace, folder: Path, pinned: Sequence[str]
) -> tuple[dict[str, list[load.Measured]], list[int]]:
    """Every server's rounds, and how far our own market's ledger was behind (ms) right after each of its rounds."""
    lags: list[int] = []
    rounds: dict[str, list[load.Measured]] = {server.name: [] for server in servers}
    for number in range(options.rounds + 1):
        for server in servers:
            seconds = options.seconds if number else min(2.0, options.seconds)  # round 0 warms up
            measured = load.measure(server.target, server.root_pid, seconds, options.connections, folder, pinned)
            if number and server.name == "algomart" and server.root_pid:
                lags.append(ingested(server)["lag_ms"])
            if number:
                rounds[server.name].append(measured)
                print(
                    f"round {number} {server.name:10} {measured.requests_per_s:9.0f}/s "
                    f"{measured.cpu_us:7.0f} µs p99 {measured.p99_ms:.1f} ms failures {measured.failures}",
                    flush=True,
                )
    return rounds, lags


def summary(
    servers: Sequence[Server], rounds: dict[str, list[load.Measured]], options: argparse.Namespace, pinned: bool
) -> dict[str, Any]:
    base = rounds["reference"]
    table = {}
    for server in servers:
        own = rounds[server.name]
        ratios = [mine.requests_per_s / theirs.requests_per_s for mine, theirs in zip(own, base, strict=True)]
        table[server.name] = {
            **load.medians(own),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_low": round(min(ratios), 3),
            "ratio_high": round(max(ratios), 3),
            "failures": sum(each.failures for each in own),
            "start_s": round(server.start_s, 2),
        }
    market = table.get("algomart")
    faster = {
        name: round(market["requests_per_s"] / table[name]["requests_per_s"], 2) for name in PACKAGES if name in table
    } if market else {}  # fmt: skip
    passed = market is None or (
        market["ratio"] >= TARGET_RATIO and all(times > 1 for times in faster.values()) and not market["failures"]
    )
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
                    "onnxruntime": onnxruntime.__version__, "load": "wrk" if shutil.which("wrk") else "asyncio",
                    "pinned": pinned},
        "options": {"seconds": options.seconds, "rounds": options.rounds, "connections": options.connections},
        "peers": {name: PACKAGES[name] for name in PACKAGES if name in table},
        "servers": table,
        "times_faster_than": faster,
        "target_ratio": TARGET_RATIO,
        "passed": passed,
    }  # fmt: skip


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    text = as_markdown(result)
    (folder / "bench.md").write_text(text)
    print(text)
    print(f"{folder / 'bench.json'}", file=sys.stderr)


def as_markdown(result: dict[str, Any]) -> str:
    machine, options = result["machine"], result["options"]
    lines = [
        f"Tiny MLP, {options['connections']} connections, {options['rounds']} interleaved rounds of "
        f"{options['seconds']:g} s, medians; {machine['cpu']}, {machine['cores']} cores"
        f"{', servers on one core and the load on another' if machine['pinned'] else ''}; {result['at']}.",
        "",
        "| server | req/s | ratio to reference (low–high) | CPU µs a request | p50 ms | p99 ms | RSS MiB | "
        "start → first answer s | failures |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in result["servers"].items():
        lines.append(
            f"| {name} | {row['requests_per_s']:,.0f} | {row['ratio']:.2f} ({row['ratio_low']:.2f}–"
            f"{row['ratio_high']:.2f}) | {row['cpu_us']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | "
            f"{row['rss_mib']:,.0f} | {row['start_s']:.1f} | {row['failures']} |"
        )
    if result["times_faster_than"]:
        faster = ", ".join(f"{times:g} × {name}" for name, times in result["times_faster_than"].items())
        verdict = "passed" if result["passed"] else "FAILED"
        lines += ["", f"AlgoMart answers {faster}. Target: ≥ {result['target_ratio']} of the reference: {verdict}."]
    lines += more_lines(result)
    return "\n".join(lines) + "\n"


def more_lines(result: dict[str, Any]) -> list[str]:
    """What was measured beside the table, in words."""
    lines = []
    if ledger := result.get("ledger"):
        lines.append(
            f"Ledger: {ledger['journalled']:,} calls journalled, {ledger['posted']:,} posted, {ledger['quarantined']} "
            f"quarantined; behind by at most {max(ledger['lag_ms_after_a_round'])} ms right after a round, caught up "
            f"{ledger['caught_up_s']:g} s after the last."
        )
    if ingest := result.get("ingest"):
        lines.append(
            f"Ingest alone ({ingest['database']}): {ingest['records_per_s']:,} records/s, {ingest['cpu_us']} µs of CPU "
            f"a record ({ingest['records']:,} records, every one charged)."
        )
    if search := result.get("search"):
        worst = max(row["median_ms"] for row in search["queries"].values())
        lines.append(
            f"Search over {search['listings']:,} listings with all facets counted: the slowest of "
            f"{len(search['queries'])} queries has a median of {worst:g} ms."
        )
    if found := result.get("lag"):
        lines += ["", lag.as_markdown(found).rstrip()]
    return ["", *lines] if lines else []


if __name__ == "__main__":
    sys.exit(main())
