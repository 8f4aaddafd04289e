"""One call between its admission and its usage record: what it reserved, what it came to, what is written down."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.digests import mint_usage_id
from serving.idempotency import IdempotencyTable, Remembered
from serving.journal import JournalWriter
from serving.leases import Reserved
from serving.metering import UsageRecord
from serving.ports import Principal, ServedVersion
from serving.statistics import VersionStatistics


class Inference(msgspec.Struct, frozen=True, gc=False):
    """What `DataPlane.infer` answers. Outputs by tensor name; money in micro-fen; times in milliseconds.

    `compute_ms` is this call's share of a shared run. For a repeated Idempotency-Key `usage_id` and `amount_micro` are
    those of the first run: nothing was charged again.
    """

    outputs: dict[str, Array]
    usage_id: str
    amount_micro: int
    lease_kind: str
    queue_ms: float
    compute_ms: float
    rows: int


@dataclass(slots=True)
class Call:
    """Reservation and facts of one call. Exactly one of `succeed` and `fail` is called, once."""

    principal: Principal
    served: ServedVersion
    statistics: VersionStatistics
    rows: int
    units: Mapping[str, int] | None
    digest: str
    purpose: str
    reserved: Reserved | None  # None: a repeat that has been billed
    started: float = field(default_factory=time.perf_counter)
    key: str = ""
    entry: Remembered | None = None
    run: asyncio.Future[Any] | None = None  # once it was queued: done when it ended, or was dropped before

    def succeed(
        self,
        journal: JournalWriter,
        table: IdempotencyTable,
        outputs: dict[str, Array],
        response_digest: str,
        queue_ms: float,
        compute_ms: float,
    ) -> Inference:
        """Settle and journal the run; only then may it be answered. Raises `Unavailable` JOURNAL_UNAVAILABLE."""
        at_ms = time.time_ns() // 1_000_000
        total_ms = (time.perf_counter() - self.started) * 1000
        reserved = self.reserved
        if reserved is None:
            assert self.entry is not None, "only a repeat has no reservation"
            self.statistics.answered(self.rows, total_ms, queue_ms, at_ms)
            return Inference(
                outputs, self.entry.usage_id, self.entry.amount_micro, "repeat", queue_ms, compute_ms, self.rows
            )
        units = {"calls": 1, "rows": self.rows, "ms": math.ceil(compute_ms)}
        if self.units:
            units = {**self.units, **units}
        units = reserved.units_for(units)
        amount = reserved.amount_for(units)
        usage_id = mint_usage_id(at_ms) if self.entry is None else self.entry.usage_id
        record = UsageRecord(
            usage_id=usage_id,
            key_id=self.principal.key_id,
            organisation=self.principal.organisation,
            model=self.statistics.label,
            adapter=self.statistics.label if self.served.base is not None else "",
            price_version=reserved.price_version,
            lease_id=reserved.lease_id,
            units=units,
            amount_micro=amount,
            occurred_at_ms=at_ms,
            status="ok",
            request_digest=self.digest,
            response_digest=response_digest,
            purpose=self.purpose,
        )
        try:
            journal.usage(record, self.key)
        except BaseException:
            self.fail(table)
            raise
        reserved.keep(amount)
        if self.entry is not None:
            table.finish(self.key, self.entry, amount)
        self.statistics.answered(self.rows, total_ms, queue_ms, at_ms)
        return Inference(outputs, usage_id, amount, reserved.kind, queue_ms, compute_ms, self.rows)

    def fail(self, table: IdempotencyTable) -> None:
        """Nothing is charged; the reservation goes back and the Idempotency-Key is free again."""
        self.statistics.failure((time.perf_counter() - self.started) * 1000)
        if self.reserved is not None:
            self.reserved.cancel()
            if self.entry is not None:
                table.finish(self.key, self.entry, None)


def with_what_was_run(refusal: Refusal, runs: Sequence[Inference], rows_answered: int) -> Refusal:
    """A request of several runs that ends in a refusal was run, and charged, up to there: say so.

    A copy, because callers whose rows shared one batch share its refusal.
    """
    if not runs:
        return refusal
    done = {
        "rows_answered": rows_answered,
        "usage_ids": [run.usage_id for run in runs],
        "charged_micro": sum(run.amount_micro for run in runs),
    }
    return type(refusal)(
        refusal.code,
        zh=refusal.zh,
        en=refusal.en,
        remedy_zh=refusal.remedy_zh,
        remedy_en=refusal.remedy_en,
        field=refusal.field,
        retry_after_s=refusal.retry_after_s,
        details={**refusal.details, **done},
    )
