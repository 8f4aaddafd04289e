"""What calls feel while the market works: `python -m tests.bench.lag` against a market of its own.

Two probes in a steady rhythm, a metered call of a starter and `/v2/health/live`, first by themselves, then while
inspections, an adaptation and choices run; and the market's own histogram of how late its event loop was. Writes
lag.json and lag.md.

    --seconds N   alone, before the jobs (default 10)
    --iterations  of boosting in the adaptation (default 600; some ten seconds)
    --out FOLDER  (default build/bench)
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from marketplace.client import Market
from marketplace.tour_model import RANGES, build_tour_bundle
from serving.loop_lag import BUCKETS_MS, NAME

CALLED = "lingnan/steel-faults-linear"
PERIOD_S = 0.005
ROWS_TO_ADAPT, ROWS_TO_CHOOSE = 900, 200
CHOICES = 60  # 20,000 rows of free trials are allowed a day
_BUCKET = re.compile(re.escape(NAME) + r'_bucket\{le="([^"]+)"\} (\d+)')


@dataclass
class Answered:
    """One probe over one stretch: latencies in ms of those that succeeded, what went wrong with the others."""

    latencies_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def per_s(self) -> float:
        return len(self.latencies_ms) / self.took_s

    def as_dict(self) -> dict[str, float | int]:
        cuts = statistics.quantiles(self.latencies_ms, n=1000)
        return {
            "answered": len(self.latencies_ms),
            "failures": len(self.failures),
            "per_s": round(self.per_s, 1),
            "p50_ms": round(cuts[499], 2),
            "p99_ms": round(cuts[989], 2),
            "max_ms": round(max(self.latencies_ms), 2),
        }


class Probe(threading.Thread):
    """Asks once every `PERIOD_S`, or as soon as the last answer has come, until it is stopped."""

    def __init__(self, address: str, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        super().__init__(name=f"probe {path}", daemon=True)
        self._address, self._request = address, (method, path, body, headers)
        self._stop_asked = threading.Event()
        self.answered = Answered()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        began = due = time.perf_counter()
        while not self._stop_asked.is_set():
            started = time.perf_counter()
            try:
                connection.request(*self._request)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status == 200:
                    self.answered.latencies_ms.append((time.perf_counter() - started) * 1000)
                else:
                    self.answered.failures.append(f"{answer.status} {content[:300]!r}")
            except OSError as error:
                self.answered.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
            due = max(due + PERIOD_S, time.perf_counter())
            self._stop_asked.wait(due - time.perf_counter())
        self.answered.took_s = time.perf_counter() - began
        connection.close()

    def stop(self) -> Answered:
        self._stop_asked.set()
        self.join()
        return self.answered


class Jobs:
    """An adaptation, and inspections and choices for as long as it runs, of one factory's engineer."""

    def __init__(self, url: str, key: str, folder: Path, iterations: int, choices: int) -> None:
        self._url, self._key, self._folder = url, key, folder
        self._iterations, self._choices = iterations, choices
        self._adapted = threading.Event()
        self.done = {"inspection": 0, "choice": 0, "adaptation": 0}
        self.failures: list[str] = []

    def prepare(self) -> None:
        """A private model to adapt, and rows of the factory's own."""
        with Market(self._url, self._key) as engineer:
            slug = engineer.me()["organisation"]["slug"]
            self._name = f"{slug}/lag-power"
            build_tour_bundle(self._folder / "bundle", self._name)
            engineer.publish(self._folder / "bundle", self._name, private=True)
            self._many, self._few = (self._upload(engineer, rows) for rows in (ROWS_TO_ADAPT, ROWS_TO_CHOOSE))

    def _upload(self, engineer: Market, rows: int) -> str:
        path = self._folder / f"rows-{rows}.csv"
        path.write_text(own_rows(rows), encoding="utf-8")
        return str(engineer.upload_samples(path, label_column="实测功率(kW)")["id"])

    def run(self) -> None:
        """All three at once, until each has ended."""
        threads = [
            threading.Thread(target=self._guard, args=(work,), name=work.__name__)
            for work in (self._inspect, self._choose, self._adapt)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guard(self, work: Callable[[Market], None]) -> None:
        try:
            with Market(self._url, self._key, timeout_s=300) as engineer:
                work(engineer)
        except Exception as error:  # told by whoever measures
            self.failures.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _adapt(self, engineer: Market) -> None:
        try:
            params = {"method": "boosting", "iterations": self._iterations}
            job = engineer.adapt("tabular_retrain", model=self._name, sample_set_id=self._many,
                                 name=f"{self._name}-own", params=params)  # fmt: skip
            if job["state"] != "done":
                raise RuntimeError(job)
            self.done["adaptation"] += 1
        finally:
            self._adapted.set()

    def _inspect(self, engineer: Market) -> None:
        while not self._adapted.is_set() or not self.done["inspection"]:
            report = engineer.inspect(self._folder / "bundle", self._name, private=True)
            if not report["report"]["passed"]:
                raise RuntimeError(report)
            self.done["inspection"] += 1

    def _choose(self, engineer: Market) -> None:
        while (not self._adapted.is_set() and self.done["choice"] < self._choices) or not self.done["choice"]:
            choice = engineer.choose(self._few)
            if choice["state"] != "done":
                raise RuntimeError(choice)
            self.done["choice"] += 1


def own_rows(count: int) -> str:
    """Rows of a worn lathe that draws 15% more power than the formula says."""
    random = np.random.default_rng(11)
    rows = np.column_stack([random.uniform(*bounds, count) for bounds in RANGES.values()])
    power = 1.15 * rows[:, 0] * rows[:, 2] * 2220 * rows[:, 1] ** 0.86 / 60_000
    lines = ["切削速度(m/min),每转进给量(mm/r),切削深度(mm),实测功率(kW)"]
    lines += [",".join(f"{value:.4f}" for value in (*row, each)) for row, each in zip(rows, power, strict=True)]
    return "\n".join(lines) + "\n"


def probes(url: str, key: str) -> list[Probe]:
    """A metered call, and the health check."""
    address = url.removeprefix("http://").rstrip("/")
    headers = {"Authorization": f"Bearer {key}"}
    metadata = httpx.get(f"{url}/v2/models/{CALLED.replace('/', '--')}", headers=headers, trust_env=False).json()
    (tensor,) = metadata["inputs"]
    shape = [1 if size < 0 else size for size in tensor["shape"]]
    data = [0.5] * int(np.prod(shape))
    document = {"inputs": [{"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, "data": data}]}
    path = f"/v2/models/{CALLED.replace('/', '--')}/infer"
    return [
        Probe(address, "POST", path, json.dumps(document).encode(), headers),
        Probe(address, "GET", "/v2/health/live", None, {}),
    ]


def loop_lag(url: str) -> dict[str, int]:
    """The market's histogram of its event loop's lag: upper bound in ms → how often at most that, so far."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    return {bound: int(count) for bound, count in _BUCKET.findall(text)}


def during(url: str, key: str, work: Callable[[], object]) -> dict[str, Any]:
    """Probe while `work` runs: what each probe was answered, and the event loop's lag meanwhile."""
    before, running = loop_lag(url), probes(url, key)
    for probe in running:
        probe.start()
    work()
    calls, health = (probe.stop() for probe in running)
    after = loop_lag(url)
    lag = {bound: after[bound] - before[bound] for bound in after}
    return {"calls": calls, "health": health, "loop_lag": lag}


def measure(
    url: str, keys: dict[str, str], folder: Path, seconds: float, iterations: int, choices: int = CHOICES
) -> dict[str, Any]:
    """`alone` and `jobs`: what calls and health checks felt; `done` and `failures` of the jobs; `ratio` of calls a
    second while the jobs ran to those alone."""
    jobs = Jobs(url, keys["engineer"], folder, iterations, choices)
    jobs.prepare()
    alone = during(url, keys["factory"], lambda: time.sleep(seconds))
    busy = during(url, keys["factory"], jobs.run)
    return {
        "alone": alone,
        "jobs": busy,
        "done": jobs.done,
        "failures": jobs.failures,
        "ratio": round(busy["calls"].per_s / alone["calls"].per_s, 3),
    }


def at_most(lag: dict[str, int], share: float) -> str:
    """The bound (ms) below which this share of the samples lies."""
    total = lag["+Inf"]
    for bound in (*(f"{each:g}" for each in BUCKETS_MS), "+Inf"):
        if lag[bound] >= total * share:
            return bound
    return "+Inf"


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    shown = {name: found[name] for name in ("done", "failures", "ratio")}
    for stretch in ("alone", "jobs"):
        lag = found[stretch]["loop_lag"]
        shown[stretch] = {
            "calls": found[stretch]["calls"].as_dict(),
            "health": found[stretch]["health"].as_dict(),
            "loop_lag_samples": lag["+Inf"],
            "loop_lag_p50_at_most_ms": at_most(lag, 0.5),
            "loop_lag_p99_at_most_ms": at_most(lag, 0.99),
            "loop_lag": lag,
        }
    return shown


def as_markdown(shown: dict[str, Any]) -> str:
    done = ", ".join(f"{count} × {name}" for name, count in shown["done"].items())
    lines = [
        f"Probes every {PERIOD_S * 1000:g} ms, alone and during {done}; calls a second during to alone: "
        f"{shown['ratio']:.2f}.",
        "",
        "| | calls/s | call p50 ms | p99 ms | max ms | health p99 ms | loop lag p50 ≤ ms | p99 ≤ ms | failures |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stretch in ("alone", "jobs"):
        row = shown[stretch]
        calls, health = row["calls"], row["health"]
        lines.append(
            f"| {stretch} | {calls['per_s']:.0f} | {calls['p50_ms']:.1f} | {calls['p99_ms']:.1f} | "
            f"{calls['max_ms']:.0f} | {health['p99_ms']:.1f} | {row['loop_lag_p50_at_most_ms']} | "
            f"{row['loop_lag_p99_at_most_ms']} | {calls['failures'] + health['failures']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    from tests.live import LiveMarket

    parser = argparse.ArgumentParser(prog="python -m tests.bench.lag")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="algomart-lag-") as scratch:
        market = LiveMarket(Path(scratch) / "home")
        market.start()
        try:
            shown = as_json(measure(market.url, market.keys, Path(scratch), options.seconds, options.iterations))
        finally:
            market.stop()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "lag.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    text = as_markdown(shown)
    (options.out / "lag.md").write_text(text)
    print(text)
    return 1 if shown["failures"] or shown["jobs"]["calls"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
