"""A call that is short enough to run on the event loop: what it reserves, what it comes to, what is written down."""

from __future__ import annotations

import time
from enum import Enum
from math import ceil
from typing import Final

import msgspec

from model_store.errors import Refusal
from model_store.run_refusals import check_output_bytes
from model_store.tensors import Array
from serving.digests import mint_usage_id
from serving.leases import HeldLease
from serving.metering import PriceLine, UsageRecord, rate_usage
from serving.ports import Principal, ServedVersion
from serving.resident import Resident
from serving.statistics import VersionStatistics


class Later(Enum):
    """A call that may run on the event loop, but not in this turn of it: ask again in the next."""

    NEXT_TURN = "next turn"


LATER: Final = Later.NEXT_TURN


class SmallCall(msgspec.Struct, gc=False):
    """A call that may run here and now: what it has reserved, what it came to, and who is told."""

    principal: Principal
    served: ServedVersion
    resident: Resident
    statistics: VersionStatistics
    held: HeldLease
    line: PriceLine | None  # None: free
    amount: int  # micro-fen, reserved
    units: dict[str, int]
    inputs: dict[str, Array]
    outputs: list[str] | None
    rows: int
    elements: int
    digest: str
    purpose: str
    at_ms: int
    usage_id: str = ""
    compute_ms: float = 0.0
    held_ms: float = 0.0  # for a turn of the event loop with room for it

    def charge(self, compute_ms: float) -> None:
        """The run is over: fix the amount, and give back what was reserved beyond it."""
        self.compute_ms = compute_ms
        self.units["ms"] = ceil(compute_ms)
        line = self.line
        if line is not None and line.unit == "ms":
            bound, self.amount = self.amount, min(self.amount, rate_usage(self.units, line))
            self.held.give_back(bound - self.amount, line)

    def undo(self) -> None:
        """It failed, or could not be written down: nothing is charged."""
        if self.line is not None:
            self.held.give_back(self.amount, self.line)
        self.statistics.failure(0.0)

    def record(self, response_digest: str) -> UsageRecord:
        line = self.line
        return UsageRecord(
            self.usage_id,
            self.principal.key_id,
            self.principal.organisation,
            self.statistics.label,
            self.statistics.label if self.served.base is not None else "",
            "" if line is None else line.price_version,
            self.held.lease.lease_id,
            self.units,
            self.amount,
            self.at_ms,
            "ok",
            self.digest,
            response_digest,
            self.purpose,
        )


def run_now(call: SmallCall, max_output_bytes: int) -> dict[str, Array]:
    """Run one call by itself and charge it. Raises what `Graph.run` raises; then nothing is charged."""
    graph = call.resident.graph
    assert graph is not None, "small calls run in this process"
    started = time.perf_counter()
    try:
        results = graph.run(call.inputs, call.outputs)
        size = 0
        for array in results.values():
            size += array.nbytes
        if size > max_output_bytes:
            check_output_bytes(results, max_output_bytes)
    except BaseException as error:
        call.undo()
        if isinstance(error, Refusal):
            call.statistics.count_broken(error.code)
        raise
    compute_ms = (time.perf_counter() - started) * 1000
    call.charge(compute_ms)
    call.usage_id = mint_usage_id(call.at_ms)
    call.resident.cost.record(call.elements, compute_ms)
    call.statistics.success(call.rows, call.held_ms + compute_ms, call.held_ms, compute_ms, call.at_ms)
    return results
