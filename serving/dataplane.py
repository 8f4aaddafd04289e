"""The one core: every protocol, trial and batch goes through `DataPlane.infer`, and nothing else runs a graph.

    admit (lease) → residency → inline, or queue and thread → meter (journal) → answer

A short run on a loaded, trusted graph under an open lease happens at once, without a single `await` (`admit_now`): a
thread hand-over would cost ten times the run. Those that came in one turn of the event loop run together
(`serving.protocols.oip_turn`). Everything else queues with a deadline. Usage is journalled when the run
ends, not when somebody is still there to hear of it: a disconnect bills the work done, a failed run bills nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from model_store.bundle import open_bundle
from model_store.errors import Refusal
from model_store.manifest import Manifest
from model_store.tensors import Array
from serving.access_log import note_run
from serving.batching import RunQueue
from serving.calls import Call, Inference
from serving.digests import digest_of_arrays, mint_usage_id
from serving.drift import DriftBook
from serving.errors.node import deadline_exceeded, shutting_down
from serving.idempotency import IdempotencyTable, key_digest, remembered_from_journals
from serving.joined import JoinedFigures
from serving.journal import JournalWriter
from serving.keycache import KeyCache
from serving.leases import LeaseBook
from serving.limits import CallLimits
from serving.loop_lag import LoopLag
from serving.metering import PriceLine, rate_usage
from serving.orders import Orders
from serving.ports import KeyLimits, Ports, Principal, ServedVersion
from serving.queued_calls import QueuedCalls
from serving.residency import Residency
from serving.resident import Resident
from serving.runs import give_way
from serving.settings import TURN_MS, ServingSettings
from serving.shadow import ShadowBook
from serving.small_calls import LATER, Later, SmallCall, run_now
from serving.statistics import Statistics
from serving.tracing import Tracing, tracing_wanted
from serving.turn_shares import TurnShares

__all__ = ["DataPlane", "Inference"]
T = TypeVar("T")
_log = logging.getLogger("algomart.dataplane")
MANIFESTS_KEPT = 2048
HELD_MS = 50.0  # at most, that a call may be held for a turn of the event loop
DIGEST_IN_THREAD_BYTES = 1 << 20


class DataPlane:
    """One serving node. Build it anywhere; use it on one event loop, between `start` and `stop`."""

    def __init__(self, ports: Ports, settings: ServingSettings | object, journal: JournalWriter) -> None:
        """`settings`: `ServingSettings`, or any object with fields of those names. `journal`: of this node's epoch."""
        self.ports = ports
        self.settings = settings if isinstance(settings, ServingSettings) else ServingSettings.of(settings)
        self.journal = journal
        self.keys = KeyCache(ports.admission, self.settings.key_cache_entries)
        self.leases = LeaseBook(ports.admission, journal.node, journal.epoch)
        self.limits = CallLimits(
            KeyLimits(self.settings.key_rate_per_s, self.settings.key_burst, self.settings.key_concurrency)
        )
        self.statistics = Statistics()
        self.tracing = Tracing() if tracing_wanted() else None
        self.turn_shares = TurnShares()
        self.loop_lag = LoopLag(self._stood_still)
        self.drift = DriftBook()
        self.shadows = ShadowBook(self)
        self.joined = JoinedFigures(self)  # with other processes behind the same port
        self.residency = Residency(self.settings, fetch=ports.bundles.fetch)
        self.orders = Orders(self.residency)
        self.idempotency = IdempotencyTable(self.settings.idempotency_entries)
        self._restored: asyncio.Task[None] | None = None
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._stopped = False
        self._inline_limit_ms, self._held_limit_ms = self.settings.inline_limit_ms, self.settings.held_limit_ms
        self._busy_ms = 0.0  # how long the calls admitted in this turn of the event loop would hold it one by one
        self._held_ms = 0.0  # and those that found it full
        threads, slots = self.settings.run_threads, self.settings.worker_slots
        self._codec_pool = concurrent.futures.ThreadPoolExecutor(2, "codec")
        self._run_pool = concurrent.futures.ThreadPoolExecutor(
            threads, "run", initializer=give_way, initargs=(self.settings.niceness_of_runs,)
        )
        self._worker_pool = concurrent.futures.ThreadPoolExecutor(slots, "worker")
        bounds = {
            "waiting_per_model": self.settings.queue_requests,
            "waiting_in_all": self.settings.queue_requests_in_all,
            "max_output_bytes": self.settings.max_output_bytes,
        }
        look = self.loop_lag.look
        release = self.residency.release
        self.queue = RunQueue(
            self._run_pool, threads, per_lane=threads, per_owner=threads, release=release, look=look, **bounds
        )
        # A worker's thread only waits for its process; an owner's endless graphs must leave slots to others.
        self.worker_queue = RunQueue(
            self._worker_pool,
            slots,
            per_lane=1,
            per_owner=self.settings.worker_slots_per_owner,
            release=release,
            look=look,
            **bounds,
        )
        self._queued = QueuedCalls(self)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind to this event loop and read the last day's idempotency keys in the background. Idempotent."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            self._restored = asyncio.create_task(self._restore())
            self.loop_lag.start()

    async def stop(self) -> None:
        """Refuse new calls, finish what runs, unload, seal and close the journal. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self.loop_lag.stop()
        if self._restored is not None:
            await asyncio.wait([self._restored])
        await self.orders.close()
        await self.shadows.close()
        await self.queue.close()
        await self.worker_queue.close()
        await self.residency.close()
        for pool in (self._codec_pool, self._run_pool, self._worker_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.journal.close)

    def _stood_still(self, seconds: float) -> None:
        for queue in (self.queue, self.worker_queue):
            queue.stood_still(seconds)

    async def _restore(self) -> None:
        try:
            now = time.time_ns() // 1_000_000
            found = await asyncio.to_thread(
                remembered_from_journals, self.journal.folder, now, except_path=self.journal.path
            )
            self.idempotency.remember(found)
        except Exception:  # a retry after the restart might be billed twice, which is said; calls go on
            _log.exception("idempotency keys could not be read from the journals")

    # --- the core -----------------------------------------------------------------------------------------------------

    def admit_now(
        self,
        principal: Principal,
        served: ServedVersion,
        inputs: dict[str, Array],
        outputs: list[str] | None,
        *,
        digest: str,
        units: Mapping[str, int] | None = None,
        purpose: str = "use",
        deadline_ms: float | None = None,
        priority: str = "normal",
        held_ms: float | None = None,
        comes_again: bool = False,
    ) -> SmallCall | Later | None:
        """Reserve for a call that can run here and now: short, and nothing has to be waited for; else None.

        For calls without Idempotency-Key. What is admitted in one turn of the event loop is expected to hold it for
        4 ms at most. `LATER` (nothing was done) where the next turn may have room for it and the caller can hold it
        until then: `held_ms`, for how long it has been. `deadline_ms` and `priority`: with which it would wait.
        `comes_again`: answered None, the same call comes once more by way of `infer`.
        Raises `Unavailable` JOURNAL_UNAVAILABLE, `TooMany` RATE_LIMITED, CONCURRENCY_LIMITED, and QUEUE_FULL or
        WAIT_TOO_LONG where it would have to wait, and there is no room, or no time.
        """
        resident = self.residency.peek(served)
        if resident is None or self._stopped:
            return None
        if resident.graph is None or not resident.cost.inline_allowed:
            self._check_room(resident, principal, priority, deadline_ms, comes_again)
            return None
        rows = resident.rows_of(inputs)
        elements = 0
        for array in inputs.values():
            elements += array.size
        settings = self.settings
        expected_ms = resident.cost.predict_ms(elements, rows)
        busy_ms = self._busy_ms + expected_ms
        if expected_ms > self._inline_limit_ms or busy_ms > TURN_MS or settings.journal_sync != "grouped":
            if busy_ms > TURN_MS and held_ms is not None and self._may_be_held(expected_ms, held_ms, deadline_ms):
                return LATER
            self._check_room(resident, principal, priority, deadline_ms, comes_again)
            return None
        held = self.leases.find(principal.organisation, served.listing_id, purpose)
        at_ms = time.time_ns() // 1_000_000
        if held is None or held.lease.expires_at_ms <= at_ms:
            return None
        self.journal.check_ready()
        counted = {"calls": 1, "rows": rows, "ms": settings.run_deadline_ms, **resident.units_of(inputs, rows)}
        if units:
            counted = {**units, **counted}
        line: PriceLine | None = None
        amount = 0
        if held.kind != "free":
            line = held.line_for(served.name, at_ms)
            if line is None:
                return None
            amount = rate_usage(counted, line)
            if not held.reserve(amount, line):
                return None
        if purpose == "use":
            try:
                self.limits.take(principal)
            except Refusal:
                if line is not None:
                    held.give_back(amount, line)
                raise
        if not self._busy_ms:
            asyncio.get_running_loop().call_soon(self._turn_over)
        self._busy_ms = busy_ms
        return SmallCall(
            principal,
            served,
            resident,
            self.statistics.of(served.name, served.version),
            held,
            line,
            amount,
            counted,
            inputs,
            outputs,
            rows,
            elements,
            digest,
            purpose,
            at_ms,
        )

    def finds_turn_full(self, served: ServedVersion, held_ms: float, deadline_ms: float | None) -> bool:
        """As `admit_now` answers `LATER`, but by the newest run, before anything of the request is read: to read it
        and digest it each time costs up to a tenth of such a run."""
        if self._busy_ms < TURN_MS / 4:
            return False
        resident = self.residency.peek(served)
        if resident is None or resident.graph is None or not resident.cost.inline_allowed:
            return False
        expected_ms = resident.cost.last_ms
        return self._busy_ms + expected_ms > TURN_MS and self._may_be_held(expected_ms, held_ms, deadline_ms)

    def _may_be_held(self, expected_ms: float, held_ms: float, deadline_ms: float | None) -> bool:
        """A later turn of the event loop is soon enough for this call, and there is room for it among those held."""
        if not self._busy_ms or expected_ms > self._inline_limit_ms or self.settings.journal_sync != "grouped":
            return False  # no turn would do
        if held_ms > HELD_MS or (deadline_ms is not None and deadline_ms - held_ms < HELD_MS):
            return False
        self._held_ms += expected_ms
        return self._held_ms <= self._held_limit_ms

    def _check_room(
        self, resident: Resident, principal: Principal, priority: str, deadline_ms: float | None, comes_again: bool
    ) -> None:
        """Refuse a call that would find its queue full or too long, before it costs more. Raises `TooMany`."""
        queue = self.queue if resident.graph is not None else self.worker_queue
        if queue.waiting:
            limit_ms = float(self.settings.run_deadline_ms)
            left_ms = limit_ms if deadline_ms is None else min(limit_ms, deadline_ms)
            queue.check_room(resident, principal.organisation, priority, left_ms, comes_again=comes_again)

    def check_full(self, principal: Principal, served: ServedVersion) -> None:
        """Refuse a call that is bound to wait where no more of its organisation's may, before its body is read: that
        may cost more than all the rest. Raises `TooMany` QUEUE_FULL."""
        if not self.queue.waiting and not self.worker_queue.waiting:
            return
        resident = self.residency.peek(served)
        if resident is None:
            return
        if resident.graph is None:
            self.worker_queue.check_full(resident, principal.organisation)
        elif not resident.cost.may_be_within(self._inline_limit_ms):
            self.queue.check_full(resident, principal.organisation)

    def _turn_over(self) -> None:
        self._busy_ms = self._held_ms = 0.0

    def _infer_now(self, call: SmallCall) -> Inference:
        """Run an admitted call at once, by itself. Raises what the run raises, and `Unavailable`."""
        started = time.perf_counter()
        results = run_now(call, self.settings.max_output_bytes)
        compute_ms = (time.perf_counter() - started) * 1000
        try:
            self.journal.usage(call.record(digest_of_arrays(results)))
        except BaseException:
            call.undo()
            raise
        if call.served.shadow is not None:
            self.shadows.offer(call.served, call.inputs, call.outputs, results, call.rows, compute_ms)
        return Inference(results, call.usage_id, call.amount, call.held.kind, 0.0, compute_ms, call.rows)

    async def infer(
        self,
        principal: Principal,
        served: ServedVersion,
        inputs: dict[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        units: Mapping[str, int] | None = None,
        purpose: str = "use",
        deadline_ms: float | None = None,
        idempotency_key: str | None = None,
        digest: str | None = None,
        priority: str = "normal",
    ) -> Inference:
        """Run one call, metered and paid for.

        `inputs` by tensor name; `outputs` None: all. `units`: what the engine cannot count (tokens out); calls, rows,
        ms, images of an image model and tokens of one with a tokenizer are counted here. `deadline_ms` from now, at
        most the node's own. `digest`: the request's, by `digest_of_bytes` (`strong` with an Idempotency-Key); by
        default the tensors'. `priority` among the organisation's own waiting calls: high, normal, low. Raises refusals
        only: of the graph (`BadInput` …), of admission (`PaymentRequired`, `Forbidden`), `TooMany` QUEUE_FULL,
        WAIT_TOO_LONG and, with purpose `use`, RATE_LIMITED and CONCURRENCY_LIMITED, `DeadlineExceeded`, `Unavailable`,
        `Conflict` IDEMPOTENCY_CONFLICT. A refused call is not charged.
        """
        if self._stopped:
            raise shutting_down()
        names = None if outputs is None else list(outputs)
        limit_ms = float(self.settings.run_deadline_ms)
        if deadline_ms is not None:
            limit_ms = min(limit_ms, deadline_ms)
        if limit_ms <= 0:
            raise deadline_exceeded(limit_ms)
        if digest is None:
            if sum(array.nbytes for array in inputs.values()) > DIGEST_IN_THREAD_BYTES:
                digest = await self.in_thread(digest_of_arrays, inputs)
            else:
                digest = digest_of_arrays(inputs)
        if idempotency_key is None:
            small = self.admit_now(
                principal,
                served,
                inputs,
                names,
                digest=digest,
                units=units,
                purpose=purpose,
                deadline_ms=limit_ms,
                priority=priority,
            )
            assert small is not LATER, "only asked for by who can hold a call"
            if small is not None:
                done = self._infer_now(small)
                note_run(small.statistics.label, done.rows, 0.0, done.compute_ms)
                if self.tracing is not None:
                    self.tracing.ran(served.name, served.version, done.rows, 0.0, done.compute_ms)
                return done
        call = Call(
            principal,
            served,
            self.statistics.of(served.name, served.version),
            rows=1,
            units=units,
            digest=digest,
            purpose=purpose,
            reserved=None,
        )
        leave = self.limits.enter(principal) if purpose == "use" else None
        try:
            if idempotency_key is not None:
                await self._claim(call, idempotency_key)
            patient = deadline_ms is None or deadline_ms >= self.settings.run_deadline_ms
            answer = await self._queued.run(call, inputs, names, limit_ms, priority, patient)
        finally:
            if leave is not None:
                _when_done(call.run, leave)
        note_run(call.statistics.label, answer.rows, answer.queue_ms, answer.compute_ms)
        if self.tracing is not None:
            self.tracing.ran(served.name, served.version, answer.rows, answer.queue_ms, answer.compute_ms)
        if self.settings.journal_sync == "before_answer":
            await self.journal.synced()
        return answer

    async def _claim(self, call: Call, idempotency_key: str) -> None:
        key = key_digest(call.principal.organisation, idempotency_key)
        if self._restored is not None:
            await asyncio.shield(self._restored)
        payload = f"{call.served.name} {call.digest}"
        call.entry = await self.idempotency.claim(key, payload, mint_usage_id())
        call.key = key

    # --- around it ----------------------------------------------------------------------------------------------------

    async def manifest_of(self, served: ServedVersion) -> Manifest:
        """The manifest of a version, read in a thread once and then kept. Raises what `open_bundle` raises."""
        known = self._manifests.get(served.digest)
        if known is None:
            await self.ports.bundles.fetch(served)
            bundle = await asyncio.to_thread(open_bundle, served.bundle)
            known = self._manifests[served.digest] = bundle.manifest
            while len(self._manifests) > MANIFESTS_KEPT:
                self._manifests.popitem(last=False)
        return known

    async def in_thread(self, work: Callable[..., T], *args: object) -> T:
        """Decoding or encoding that would hold the event loop too long, in the codec's own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._codec_pool, work, *args)

    def forget_keys(self, *key_ids: str) -> None:
        """These keys (all, if none is named) no longer hold: ask again from the next call on. From any thread."""
        self._on_loop(lambda: self.keys.forget(*key_ids))

    def expire_leases(self, organisation: str | None = None, listing_id: str | None = None) -> None:
        """A voucher, price or subscription changed: the next call asks for its lease again. From any thread."""
        self._on_loop(lambda: self.leases.expire(organisation, listing_id))

    def _on_loop(self, act: Callable[[], None]) -> None:
        """Do it on the event loop, and return when it is done; at once on the loop's own thread, or where none runs."""
        loop = self._loop
        if loop is None or loop.is_closed() or threading.get_ident() == self._loop_thread:
            act()
            return
        done = threading.Event()

        def act_and_tell() -> None:
            act()
            done.set()

        loop.call_soon_threadsafe(act_and_tell)
        done.wait(1.0)

    def gauges(self) -> dict[str, float]:
        """Present values for `/metrics`, by metric name."""
        leases = self.leases.leases()
        return {
            "algomart_up_seconds": time.time() - self.statistics.started_at,
            "algomart_resident_models": len(self.residency.residents()),
            "algomart_resident_bytes": self.residency.held_bytes,
            "algomart_model_loads_total": self.residency.loads,
            "algomart_model_evictions_total": self.residency.evictions,
            "algomart_queue_waiting": self.queue.waiting + self.worker_queue.waiting,
            "algomart_queued_runs_total": self.queue.runs + self.worker_queue.runs,
            "algomart_leases_held": len(leases),
            "algomart_leases_opened_total": self.leases.opened,
            "algomart_journal_bytes": self.journal.size_bytes,
            "algomart_journal_records_total": self.journal.next_seq - self.journal.first_seq,
            "algomart_rows_outside_training_total": self.drift.rows_outside,
            "algomart_keys_asked_total": self.keys.asked,
        }


def _when_done(run: asyncio.Future[Any] | None, leave: Callable[[], None]) -> None:
    """Now, or when a run ends whose caller has gone: it holds its thread until then."""
    if run is None or run.done():
        leave()
    else:
        run.add_done_callback(lambda _: leave())
