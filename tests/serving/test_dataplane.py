"""The one core: what is run is metered, what fails is not charged, what a lease does not cover is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from model_store.errors import (
    BadInput,
    Conflict,
    DeadlineExceeded,
    PaymentRequired,
    Refusal,
    TooMany,
    Unavailable,
    Unprocessable,
)
from serving.journal import verify
from serving.memory_admission import Purse
from serving.metering import PriceLine
from serving.ports import Principal, ServedVersion
from tests.serving.parts import FACTORY, OTHER, double, endless, gather, rows, running_node, until


async def test_a_call_is_answered_metered_and_journalled(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=370_000)
        x = rows(4)
        inference = await node.dataplane.infer(FACTORY, served, {"x": x})
        np.testing.assert_array_equal(inference.outputs["y"], 2 * x)
        (record,) = node.usage()
        assert record.usage_id == inference.usage_id
        assert (record.organisation, record.key_id, record.model) == ("org_factory", "key_1", "acme/double@1")
        assert (record.units["calls"], record.units["rows"]) == (1, 4)
        assert record.amount_micro == inference.amount_micro == 370_000
        assert record.price_version == "prc_acme/double"
        assert (record.status, record.purpose) == ("ok", "use")
        assert record.request_digest
        assert record.response_digest
    assert verify(node.journal.path) == []


async def test_the_same_call_gives_the_same_record_inline_and_queued(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=10, unit="rows")
        for _ in range(8):  # the first is queued (nothing is known of its cost), later ones are inline
            await node.dataplane.infer(FACTORY, served, {"x": rows(5)})
        assert node.dataplane.queue.runs < 8
        records = node.usage()
        assert {(r.amount_micro, r.units["rows"], r.response_digest) for r in records} == {
            (50, 5, records[0].response_digest)
        }


async def test_a_short_model_once_thought_long_comes_back_to_the_loop_under_load(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=10)
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        (resident,) = node.dataplane.residency.residents()
        resident.cost.classes = dict.fromkeys(resident.cost.classes, 50.0)  # its first run met a busy machine
        for _ in range(6):  # never one at a time, so that the queue joins all of them
            calls = (node.dataplane.infer(FACTORY, served, {"x": rows(1)}) for _ in range(64))
            await asyncio.gather(*calls)
        queued = node.dataplane.queue.runs
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert node.dataplane.queue.runs == queued


async def test_rows_are_priced_as_the_engine_counts_them_and_other_units_as_the_skin_does(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=7, unit="images")
        inference = await node.dataplane.infer(FACTORY, served, {"x": rows(2)}, units={"images": 3, "rows": 99})
        assert inference.amount_micro == 21
        assert node.usage()[0].units["rows"] == 2


async def test_time_is_priced_by_whole_milliseconds_and_the_rest_of_the_bound_goes_back(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=1, unit="ms")
        for _ in range(5):
            inference = await node.dataplane.infer(FACTORY, served, {"x": rows(2)})
            assert inference.amount_micro == node.usage()[-1].units["ms"] >= 1
        (held,) = node.dataplane.leases.leases()
        spent = sum(record.amount_micro for record in node.usage())
        assert held.voucher_scaled + held.own_scaled == spent * held.scale


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"z": rows(2)}, "TENSOR_UNKNOWN"),
        ({}, "TENSOR_MISSING"),
        ({"x": rows(2).astype(np.float64)}, "TENSOR_DTYPE"),
        ({"x": rows(2, 4)}, "TENSOR_SHAPE"),
    ],
)
async def test_bad_tensors_are_refused_and_not_charged(
    tmp_path: Path, inputs: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]], code: str
) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=1)
        for _ in range(2):
            with pytest.raises(BadInput) as refused:
                await node.dataplane.infer(FACTORY, served, inputs)
            assert refused.value.code == code
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        with pytest.raises(BadInput):
            await node.dataplane.infer(FACTORY, served, inputs)
        assert len(node.usage()) == 2


async def test_a_failed_run_costs_nothing(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/gather", gather(), micro=100)
        good, bad = np.array([1, 2]), np.array([1, 99])
        await node.dataplane.infer(FACTORY, served, {"x": good})
        for _ in range(3):
            with pytest.raises(Unprocessable) as refused:
                await node.dataplane.infer(FACTORY, served, {"x": bad})
            assert refused.value.code == "MODEL_RUN_FAILED"
        await node.dataplane.infer(FACTORY, served, {"x": good})
        (held,) = node.dataplane.leases.leases()
        assert held.voucher_scaled == 2 * 50 * held.scale
        assert len(node.usage()) == 2


async def test_concurrent_calls_never_spend_more_than_the_purse(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=30)
        node.admission.purses["org_factory"] = Purse(voucher_micro=1000, own_micro=10_000, step_micro=170)
        answers = await asyncio.gather(
            *(node.dataplane.infer(FACTORY, served, {"x": rows(1)}) for _ in range(200)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, PaymentRequired)]
        assert len(answers) - len(refused) == 66  # 66 · 15 ≤ 1000 < 67 · 15
        assert {refusal.code for refusal in refused} == {"VOUCHER_EXHAUSTED"}
        assert sum(record.amount_micro for record in node.usage()) == 66 * 30


async def test_leases_are_asked_for_once_by_many(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=1)
        await asyncio.gather(*(node.dataplane.infer(FACTORY, served, {"x": rows(1)}) for _ in range(50)))
        assert node.admission.opened <= 2  # prices first, then the block


async def test_an_expired_lease_stops_new_calls_only_until_it_is_renewed(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=1)
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        opened = node.admission.opened
        node.dataplane.expire_leases("org_other")
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert node.admission.opened == opened
        node.dataplane.expire_leases("org_factory")
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert node.admission.opened == opened + 1
        assert len({record.lease_id for record in node.usage()}) == 1


async def test_the_leases_of_one_listing_are_asked_for_again_and_no_others(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = [node.add(name, double(), micro=1) for name in ("acme/double", "acme/other")]
        for each in served:
            await node.dataplane.infer(FACTORY, each, {"x": rows(1)})
        opened = node.admission.opened
        node.dataplane.expire_leases(listing_id=served[0].listing_id)
        await node.dataplane.infer(FACTORY, served[1], {"x": rows(1)})
        assert node.admission.opened == opened
        await node.dataplane.infer(FACTORY, served[0], {"x": rows(1)})
        assert node.admission.opened == opened + 1


async def test_a_trial_is_free_and_says_so(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=1_000)
        inference = await node.dataplane.infer(FACTORY, served, {"x": rows(3)}, purpose="trial")
        assert (inference.amount_micro, inference.lease_kind) == (0, "free")
        (record,) = node.usage()
        assert (record.purpose, record.price_version, record.amount_micro) == ("trial", "", 0)


async def test_a_price_that_the_lease_does_not_name_is_refused(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double())
        node.admission.prices["acme/double"] = PriceLine("prc_x", "acme/other", "calls", 5, 1, 2)
        with pytest.raises(PaymentRequired) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert refused.value.code == "PRICE_MISSING"


async def test_a_ledger_that_is_down_serves_inside_open_leases_only(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=100)
        node.admission.purses["org_factory"] = Purse(10_000, 10_000, step_micro=100)
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})

        async def down(principal: Principal, served: ServedVersion, **_: object) -> None:
            raise ConnectionError("no ledger")

        node.admission.open_lease = down  # type: ignore[method-assign,assignment]
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        with pytest.raises(Unavailable) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert refused.value.code == "ADMISSION_UNAVAILABLE"
        assert len(node.usage()) == 2


async def test_without_a_journal_nothing_is_answered_or_charged(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=100)
        for _ in range(3):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        node.journal.seal()
        (held,) = node.dataplane.leases.leases()
        used = held.voucher_scaled
        with pytest.raises(Unavailable) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert refused.value.code == "JOURNAL_UNAVAILABLE"
        assert held.voucher_scaled == used


async def test_a_call_past_its_deadline_is_refused_and_free(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/endless", endless(), micro=100)
        with pytest.raises(DeadlineExceeded) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, deadline_ms=200)
        assert refused.value.code == "DEADLINE_EXCEEDED"
        with pytest.raises(DeadlineExceeded):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, deadline_ms=0)
        assert node.usage() == []


async def test_others_are_served_while_a_graph_loops(tmp_path: Path) -> None:
    async with running_node(tmp_path, run_deadline_ms=3_000) as node:
        bomb = node.add("evil/endless", endless(), micro=1, trusted=False, owner="org_other", private=True)
        fine = node.add("acme/double", double(), micro=1)
        bombs = [asyncio.create_task(node.dataplane.infer(OTHER, bomb, {"x": rows(1)})) for _ in range(4)]
        for _ in range(30):
            await node.dataplane.infer(FACTORY, fine, {"x": rows(2)})
            await asyncio.sleep(0.01)
        ended = await asyncio.gather(*bombs, return_exceptions=True)
        assert all(isinstance(answer, DeadlineExceeded) for answer in ended)
        assert {record.model for record in node.usage()} == {"acme/double@1"}


async def test_an_untrusted_graph_runs_in_its_worker(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=5, trusted=False)
        inference = await node.dataplane.infer(FACTORY, served, {"x": rows(2)})
        np.testing.assert_array_equal(inference.outputs["y"], 2 * rows(2))
        (resident,) = node.dataplane.residency.residents()
        assert resident.graph is None
        assert (node.dataplane.worker_queue.runs, node.dataplane.queue.runs) == (1, 0)
        with pytest.raises(BadInput) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(2, 5)})
        assert refused.value.code == "TENSOR_SHAPE"
        assert len(node.usage()) == 1


async def test_a_caller_who_leaves_while_the_run_goes_on_is_billed(tmp_path: Path) -> None:
    async with running_node(tmp_path, threads=1) as node:
        served = node.add("acme/double", double(), micro=10)
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        (resident,) = node.dataplane.residency.residents()
        resident.cost.inline_allowed = False
        made = 0
        while True:  # until one is met while it runs: on a fast core it may be over between two looks
            made += 1
            call = asyncio.create_task(node.dataplane.infer(FACTORY, served, {"x": rows(400_000)}))
            await until(lambda call=call: node.dataplane.queue._running or call.done())
            if not call.done():
                break
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: len(node.usage()) == 1 + made)
        assert [record.units["rows"] for record in node.usage()] == [1, *[400_000] * made]
        assert resident.references == 0


async def test_a_caller_who_leaves_before_the_run_is_dropped(tmp_path: Path) -> None:
    async with running_node(tmp_path, threads=1, run_deadline_ms=1500) as node:
        slow = node.add("acme/endless", endless(), micro=10)
        served = node.add("acme/double", double(), micro=10)
        blocker = asyncio.create_task(node.dataplane.infer(FACTORY, slow, {"x": rows(1)}))
        await until(lambda: node.dataplane.queue._running)
        call = asyncio.create_task(node.dataplane.infer(FACTORY, served, {"x": rows(1)}))
        await until(lambda: node.dataplane.queue.waiting)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(DeadlineExceeded):
            await blocker
        assert node.dataplane.queue.waiting == 0
        assert node.usage() == []
        await until(lambda: all(not resident.references for resident in node.dataplane.residency.residents()))


async def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    async with running_node(tmp_path, threads=1, run_deadline_ms=1500, queue_requests=3) as node:
        slow = node.add("acme/endless", endless(), micro=10, manifest={"batching": {"dynamic": False}})
        calls = [asyncio.create_task(node.dataplane.infer(FACTORY, slow, {"x": rows(1)})) for _ in range(6)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        full = [answer for answer in ended if isinstance(answer, TooMany)]
        assert len(full) == 2  # one runs, three wait
        assert {refusal.code for refusal in full} == {"QUEUE_FULL"}
        assert all(refusal.retry_after_s for refusal in full)
        assert sum(isinstance(answer, DeadlineExceeded) for answer in ended) == 4


async def test_a_stopped_node_refuses(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double())
        await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        await node.dataplane.stop()
        with pytest.raises(Refusal) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
        assert refused.value.code == "SHUTTING_DOWN"


async def test_the_answer_can_wait_for_the_disk(tmp_path: Path) -> None:
    async with running_node(tmp_path, journal_sync="before_answer") as node:
        served = node.add("acme/double", double(), micro=1)
        for _ in range(3):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)})
            assert node.journal._synced_size == node.journal.size_bytes


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


async def test_a_repeat_runs_again_under_the_same_usage_id_and_is_billed_once(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=100)
        first = await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="d")
        again = await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="d")
        assert (again.usage_id, again.amount_micro) == (first.usage_id, first.amount_micro)
        np.testing.assert_array_equal(again.outputs["y"], first.outputs["y"])
        assert len(node.usage()) == 1
        with pytest.raises(Conflict) as refused:
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="e")
        assert refused.value.code == "IDEMPOTENCY_CONFLICT"
        other = await node.dataplane.infer(OTHER, served, {"x": rows(1)}, idempotency_key="k", digest="e")
        assert other.usage_id != first.usage_id


async def test_simultaneous_repeats_are_billed_once(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), micro=100)
        answers = await asyncio.gather(
            *(node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="d") for _ in range(10))
        )
        assert len({answer.usage_id for answer in answers}) == 1
        assert len(node.usage()) == 1


async def test_a_key_whose_run_failed_may_be_used_again(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/gather", gather(), micro=100)
        with pytest.raises(Unprocessable):
            await node.dataplane.infer(FACTORY, served, {"x": np.array([99])}, idempotency_key="k", digest="bad")
        with pytest.raises(BadInput):
            await node.dataplane.infer(FACTORY, served, {"y": np.array([9])}, idempotency_key="k", digest="worse")
        inference = await node.dataplane.infer(
            FACTORY, served, {"x": np.array([3])}, idempotency_key="k", digest="good"
        )
        assert inference.amount_micro == 100
        assert len(node.usage()) == 1


async def test_keys_are_remembered_across_a_restart(tmp_path: Path) -> None:
    async with running_node(tmp_path / "a") as node:
        served = node.add("acme/double", double(), micro=100)
        first = await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="d")
        folder = node.folder
    async with running_node(folder, epoch=2) as node:
        served = node.add("acme/double", double(), micro=100)
        again = await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="d")
        assert again.usage_id == first.usage_id
        with pytest.raises(Conflict):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key="k", digest="other")
        assert node.usage() == []


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb"])
async def test_an_unlawful_idempotency_key_is_refused(tmp_path: Path, key: str) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double())
        with pytest.raises(BadInput):
            await node.dataplane.infer(FACTORY, served, {"x": rows(1)}, idempotency_key=key)
