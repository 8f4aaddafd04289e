"""Settings of a serving node; the composition root fills them, under the market's own names where both have one."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

TURN_MS = 4.0  # runs that may be expected to hold the event loop in one turn of it
NICENESS_ON_ONE_CORE = 5  # as ingest's
HELD_TURNS = 4  # how many turns full of such runs may be waiting, before the next goes to the queue


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Sizes in bytes, times in the unit of the name's last word."""

    memory_budget_bytes: int = 2 << 30  # what loaded models may hold together
    mapped_folder: Path | None = None  # where weights are kept that were moved out of their models, to be mapped
    max_body_bytes: int = 64 << 20  # request body, also after decompression
    max_samples_bytes: int = 264 << 20  # body of a sample set: 256 MiB of pictures and the form around them
    max_samples_in_all_bytes: int = 528 << 20  # what such bodies may hold together
    max_bodies_in_all_bytes: int = 512 << 20  # what the bodies of all calls in hand may hold together
    max_connections: int = 4096  # HTTP connections, over which the next is refused
    receive_timeout_s: float = 30.0  # for the head of a request, or for a body to move on
    send_timeout_s: float = 30.0  # for a client to read on
    drain_s: float = 0.0  # at the end, how long readiness says no before connections are refused
    max_output_bytes: int = 64 << 20
    run_deadline_ms: int = 10_000  # from the call's arrival to its answer; X-Deadline-Ms may only shorten it
    worker_memory_bytes: int = 1 << 30
    key_cache_entries: int = 10_000
    threads: int = 0  # threads that run graphs; 0: one a core
    run_niceness: int = -1  # by how much those give way to the event loop and other programs; -1: on one core 5, else 0
    worker_slots: int = 8  # unlisted graphs that may run at once, each in its own process
    worker_slots_per_owner: int = 2
    pinned_models: str = ""  # never unloaded to make room: vendor/name (or vendor--name), separated by commas
    queue_requests: int = 256  # waiting calls of one organisation for one model, over which its next is refused
    queue_requests_in_all: int = 2048  # over which the newest of the organisation that has most is refused
    key_rate_per_s: int = 0  # calls a second of any one key; 0: no limit but the key's own
    key_burst: int = 0  # of those, how many may come at once; 0: what a second allows
    key_concurrency: int = 1024  # calls of any one key in hand; 0: no limit but the key's own
    inline_ms: float = 0.0  # runs predicted shorter than this stay on the event loop; 0: 1 ms, on one core 4 ms
    idempotency_entries: int = 100_000
    grpc_calls: int = 256  # gRPC calls in hand, over which the next is refused; half of them for one organisation
    grpc_streams: int = 64  # gRPC streams; a quarter of them for one organisation
    journal_sync: Literal["grouped", "before_answer"] = "grouped"
    triton_compat: bool = False  # Triton's own name and words, and models without their vendor's name
    access_log: str = ""  # file of the access log, or "-" for standard output; "": none is kept
    metrics_token: str = ""  # beside loopback, who sends this bearer token may read /metrics

    @classmethod
    def of(cls, source: object) -> ServingSettings:
        """Take every field that `source` has an attribute for (the market's settings, for example)."""
        found = {each.name: getattr(source, each.name) for each in fields(cls) if hasattr(source, each.name)}
        return cls(**found)

    @property
    def pins(self) -> frozenset[str]:
        """The names in `pinned_models`, as `vendor/name`."""
        return frozenset(name.strip().replace("--", "/", 1) for name in self.pinned_models.split(",") if name.strip())

    @property
    def inline_limit_ms(self) -> float:
        """Below this a run stays on the event loop. With a single core a thread could not work beside the loop, only
        take the interpreter and the core from it, so the limit is what the loop may be held at all."""
        return self.inline_ms or (1.0 if self.run_threads > 1 else TURN_MS)

    @property
    def held_limit_ms(self) -> float:
        """Short runs that may wait for later turns of the event loop; where there is a core to spare, a thread is
        sooner."""
        return HELD_TURNS * TURN_MS if self.run_threads == 1 else 0.0

    @property
    def niceness_of_runs(self) -> int:
        """Where there is one core, a run would take it from the event loop in the middle of a turn; with more, the loop
        goes to another, and giving way would only cost runs their share of a busy machine."""
        if self.run_niceness >= 0:
            return self.run_niceness
        return NICENESS_ON_ONE_CORE if len(os.sched_getaffinity(0)) == 1 else 0

    @property
    def run_threads(self) -> int:
        """Threads for graphs: one for each core this process may use."""
        return self.threads or len(os.sched_getaffinity(0))
