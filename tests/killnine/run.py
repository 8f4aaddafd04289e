"""kill -9 of a market at seeded instants while clients call it; afterwards the books are held against what was
acknowledged.

    acknowledged ⊆ posted · none twice · posted − acknowledged ≤ calls in flight at the kills · pool conserved
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from marketplace.doctor import examine
from marketplace.settings import Settings
from tests.killnine.books import faults_of_api, faults_of_database, faults_of_leases, half_published, posted_usage
from tests.killnine.clients import Client, acknowledgements
from tests.killnine.processes import alive, family, holders
from tests.killnine.publisher import Publisher
from tests.killnine.registry import OutsideRegistry
from tests.killnine.town import ok, prepare, wait_until
from tests.live import LiveMarket

CALM_S = (0.2, 2.5)  # from ready to the next kill
LONG_CALM_S = (2.5, 9.0)  # one kill in five: by then the registry is up too and models are being published
STARTING_S = (0.0, 3.0)  # from the start to a kill while it starts
KILLED_STARTING = 0.25  # of the kills
ORPHANS_S = 20.0
INGESTED_S = 60.0
SETTLED_S = 60.0

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What came of it. `faults` is empty where everything held; times are told, never judged."""

    kills: int = 0
    kills_while_starting: int = 0
    clients: int = 0
    seed: int = 0
    acknowledged: int = 0
    posted: int = 0
    acknowledged_not_posted: int = 0
    in_flight_at_kills: int = 0
    posted_not_acknowledged: int = 0
    models_published: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    restart_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": not self.faults}


def kill_nine(
    folder: Path, *, kills: int, clients: int, seed: int, outside_registry: bool = False, say: Say = print
) -> Verdict:
    """The whole run in `folder`; the market is stopped at the end. `outside_registry`: MLflow outlives the kills."""
    with contextlib.ExitStack() as stack:
        environment, registry = {}, folder / "home" / "mlflow.db"
        if outside_registry:
            server = OutsideRegistry(folder / "registry")
            server.start()
            stack.callback(server.stop)
            server.wait_ready()
            environment, registry = {"ALGOMART_MLFLOW_URI": server.base_url}, server.database
        market = LiveMarket(folder / "home", **environment)
        market.start()
        stack.callback(_kill_what_is_left, market)
        return _Run(market, folder, kills, clients, seed, registry, say).carry_out()


def _kill_what_is_left(market: LiveMarket) -> None:
    if any(alive(family(market.pid))):
        market.kill()


class _Run:
    def __init__(
        self, market: LiveMarket, folder: Path, kills: int, clients: int, seed: int, registry: Path, say: Say
    ) -> None:
        self.market, self.registry, self.say = market, registry, say
        self.random = random.Random(seed)
        self.verdict = Verdict(kills=kills, clients=clients, seed=seed)
        self.stop = threading.Event()
        self.kill_instants: list[tuple[float, float]] = []  # before SIGKILL was sent, and after
        work = prepare(market, folder, clients)
        self.clients = [Client(market.url, each, folder, seed, self.stop) for each in work]
        self.publisher = Publisher(market.url, market.keys["engineer"], self.stop)

    def carry_out(self) -> Verdict:
        for thread in (*self.clients, self.publisher):
            thread.start()
        try:
            for number in range(self.verdict.kills):
                self._kill_once(number)
            time.sleep(CALM_S[1])
        finally:
            self.stop.set()
            for thread in (*self.clients, self.publisher):
                thread.join()
        self._compare()
        self._examine()
        return self.verdict

    # --- killing ------------------------------------------------------------------------------------------------------

    def _kill_once(self, number: int) -> None:
        """Kill it in a calm or (one in four) again while it starts, then start it on the same folder at once."""
        if self.random.random() < KILLED_STARTING and number:
            self.verdict.kills_while_starting += 1
            self._kill()
            self.market.spawn()
            time.sleep(self.random.uniform(*STARTING_S))
        else:
            time.sleep(self.random.uniform(*(LONG_CALM_S if number % 5 == 1 else CALM_S)))
        before = self._kill()
        began = time.monotonic()
        self.market.start()
        self.verdict.restart_s.append(round(time.monotonic() - began, 2))
        left = self._orphans(before)
        if left:
            self.verdict.faults.append(f"kill {number + 1}: of the killed market there still live {left}")
        self.say(f"kill {number + 1}/{self.verdict.kills}: ready again after {self.verdict.restart_s[-1]} s")

    def _kill(self) -> list[psutil.Process]:
        before = family(self.market.pid)
        about_to = time.monotonic()
        os.kill(self.market.pid, signal.SIGKILL)
        self.kill_instants.append((about_to, time.monotonic()))
        self.market.kill()  # waits for its end
        return before

    def _orphans(self, before: list[psutil.Process]) -> list[str]:
        """Who of the killed market outlives it by `ORPHANS_S`."""
        deadline = time.monotonic() + ORPHANS_S
        while True:
            left = alive(before) or holders(self.market.home, family(self.market.pid))
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    # --- judging ------------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Each client's acknowledgements against what the operator sees posted under its key."""
        operator, verdict = self.market.client("operator"), self.verdict
        for client in self.clients:
            acknowledged = acknowledgements(client.path)
            posted = self._posted(operator, client.work.key_id, set(acknowledged))
            in_flight = self._in_flight(client)
            missing = {key for key, amount in acknowledged.items() if posted.get(key) != amount}
            surplus = len(posted.keys() - acknowledged.keys())
            verdict.acknowledged += len(acknowledged)
            verdict.posted += len(posted)
            verdict.acknowledged_not_posted += len(missing)
            verdict.in_flight_at_kills += in_flight
            verdict.posted_not_acknowledged += surplus
            for code, count in client.tally.refused.items():
                verdict.refused[code] = verdict.refused.get(code, 0) + count
            self._judge(client, len(missing), surplus, 0 if client.work.repeats else in_flight)

    def _judge(self, client: Client, missing: int, surplus: int, allowed: int) -> None:
        name, faults = client.work.name, self.verdict.faults
        if missing:
            faults.append(f"{name}: {missing} acknowledged calls are not posted as acknowledged")
        if surplus > allowed:
            faults.append(f"{name}: {surplus} calls are posted that nobody acknowledged; {allowed} could be")
        if client.tally.wrong:
            faults.append(f"{name}: {client.tally.wrong} answers were wrong")
        if not client.tally.acknowledged:
            faults.append(f"{name}: not one call was answered: {client.tally.refused}")

    def _in_flight(self, client: Client) -> int:
        """Calls that had begun before a kill and were not answered by then, nor ever."""
        return sum(
            any(began <= killed and ended >= about_to for about_to, killed in self.kill_instants)
            for began, ended in client.tally.unanswered
        )

    def _posted(self, operator: httpx.Client, key_id: str, wanted: set[str]) -> dict[str, int]:
        deadline = time.monotonic() + INGESTED_S
        while True:
            posted = posted_usage(operator, key_id)
            if wanted <= posted.keys() or time.monotonic() > deadline:
                return posted
            time.sleep(0.3)

    def _examine(self) -> None:
        """The books of the running market, and again once it was stopped and every lease is settled."""
        market, verdict = self.market, self.verdict
        path = market.home / "market.db"
        with contextlib.suppress(AssertionError):  # what has not settled by then is named with the faults below
            wait_until(lambda: not half_published(market.home, self.registry), SETTLED_S, "publications settled")
        shown = {each["name"] for each in _all_of_mine(market.client("engineer"))}
        verdict.models_published = len(self.publisher.shelf.published)
        lost = set(self.publisher.shelf.published) - shown
        if lost:
            verdict.faults.append(f"published and acknowledged, but not there: {sorted(lost)}")
        verdict.faults += faults_of_api(market.client("operator"))
        before = family(market.pid)
        if market.stop() != 0:
            verdict.faults.append("it did not stop cleanly")
        verdict.faults += [f"outlived the stop: {each}" for each in alive(before) + holders(market.home, [])]
        verdict.faults += faults_of_database(path) + faults_of_leases(path) + half_published(market.home, self.registry)
        verdict.faults += [f"doctor: {each.en}" for each in examine(Settings(home=market.home)) if
                           each.severity == "error"]  # fmt: skip


def _all_of_mine(client: httpx.Client) -> list[dict[str, Any]]:
    slug = ok(client.get("/api/v1/me"))["organisation"]["slug"]
    found: list[dict[str, Any]] = []
    page = 1
    while True:
        items = ok(client.get("/api/v1/models", params={"vendor": slug, "page": page}))["items"]
        if not items:
            return found
        found += items
        page += 1
