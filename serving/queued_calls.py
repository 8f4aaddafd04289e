"""A call that waits: for its model, its lease and its turn; concluded when its run ends, whoever still listens.

What is short and needs no waiting is run at once (`DataPlane.admit_now`) and does not come here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.calls import Call, Inference
from serving.errors.node import deadline_exceeded, internal_error, shutting_down
from serving.resident import Resident
from serving.runs import Ran

if TYPE_CHECKING:
    from serving.dataplane import DataPlane

_log = logging.getLogger("algomart.dataplane")


class QueuedCalls:
    """Those of one data plane. Every method runs on its event loop."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def run(
        self,
        call: Call,
        inputs: dict[str, Array],
        outputs: list[str] | None,
        limit_ms: float,
        priority: str,
        patient: bool,
    ) -> Inference:
        """Reserve, queue within `limit_ms`, and conclude when the run ends; raises as `DataPlane.infer`.

        `patient`: see `RunQueue.submit`.
        """
        plane = self._plane
        arrived = time.monotonic()
        billed = call.entry is not None and call.entry.billed
        resident: Resident | None = None
        try:
            try:
                async with asyncio.timeout(limit_ms / 1000):
                    resident = await plane.residency.acquire(call.served)
                    if resident.graph is not None:
                        resident.graph.check_inputs(inputs)  # nothing is reserved for what cannot run
                    call.rows = resident.rows_of(inputs)
                    call.units = {**(call.units or {}), **resident.units_of(inputs, call.rows)}
                    plane.journal.check_ready()
                    if not billed:
                        bound = {**(call.units or {}), "calls": 1, "rows": call.rows, "ms": int(limit_ms) + 1}
                        with contextlib.nullcontext() if plane.tracing is None else plane.tracing.step("lease"):
                            call.reserved = await plane.leases.reserve(call.principal, call.served, bound, call.purpose)
            except TimeoutError:
                raise deadline_exceeded(limit_ms) from None
            left_ms = limit_ms - (time.monotonic() - arrived) * 1000
            queue = plane.queue if resident.graph is not None else plane.worker_queue
            tenant, weight = call.principal.organisation, call.principal.weight
            job = queue.submit(resident, inputs, outputs, call.rows, left_ms, tenant, priority, weight, patient)
            call.run = job.done
        except BaseException as error:
            self._drop(call, resident, error)
            raise
        answer: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        loaded = resident
        elements = sum(array.size for array in inputs.values())
        job.done.add_done_callback(lambda done: self._conclude(call, loaded, elements, done, answer))
        if call.served.shadow is not None:
            job.done.add_done_callback(lambda done: self._offer_shadow(call, inputs, outputs, done))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            if not job.started:
                job.done.cancel()  # dropped before it runs; what has started is finished and billed
            raise

    def _drop(self, call: Call, resident: Resident | None, error: BaseException) -> None:
        if resident is not None:
            self._plane.residency.release(resident)
        self._fail(call, error)

    def _offer_shadow(
        self, call: Call, inputs: dict[str, Array], outputs: list[str] | None, done: asyncio.Future[Ran]
    ) -> None:
        if not done.cancelled() and done.exception() is None:
            ran = done.result()
            self._plane.shadows.offer(call.served, inputs, outputs, ran.outputs, call.rows, ran.compute_ms)

    def _fail(self, call: Call, error: BaseException | None) -> None:
        if isinstance(error, Refusal):
            call.statistics.count_broken(error.code)
        if call.reserved is None and call.entry is not None and not call.entry.billed:
            self._plane.idempotency.finish(call.key, call.entry, None)
        call.fail(self._plane.idempotency)

    def _conclude(
        self,
        call: Call,
        resident: Resident,
        elements: int,
        done: asyncio.Future[Ran],
        answer: asyncio.Future[Inference],
    ) -> None:
        """The run ended: settle, journal, and answer whoever still waits."""
        plane = self._plane
        plane.residency.release(resident)
        failure: BaseException | None = None
        inference: Inference | None = None
        if done.cancelled():
            self._fail(call, None)
            failure = shutting_down()
        else:
            failure = done.exception()
            if failure is not None:
                if not isinstance(failure, Refusal):
                    _log.error("a run broke", exc_info=failure)
                    failure = internal_error()
                self._fail(call, failure)
            else:
                ran = done.result()
                resident.cost.record(elements, ran.batch_cpu_ms, shared=ran.batch_rows != call.rows)
                if (run := ran.execution) is not None:
                    call.statistics.executed(run.rows, run.compute_ms, run.input_ms, run.output_ms)
                try:
                    inference = call.succeed(
                        plane.journal, plane.idempotency, ran.outputs, ran.digest, ran.queue_ms, ran.compute_ms
                    )
                except Refusal as refusal:
                    failure = refusal
        if answer.done():
            return
        if inference is not None:
            answer.set_result(inference)
        else:
            assert failure is not None, "no inference without a failure"
            answer.set_exception(failure)
