"""Leases at the node: exact to the micro-fen in any order of calls. Keys: known no longer than they hold."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import Refusal, Unauthenticated, Unavailable
from serving.keycache import KeyCache
from serving.leases import HeldLease, Reserved
from serving.memory_admission import MemoryAdmission
from serving.metering import Lease, LeaseKind, PriceLine, rate_usage
from tests.serving.parts import FACTORY, OTHER


def lease(kind: LeaseKind = "subsidised", voucher: int = 1000, own: int = 1000, *lines: PriceLine) -> Lease:
    prices = list(lines) or [PriceLine("p", "a/m", "calls", 1, 1, 3)]
    return Lease("lea", "n", 1, kind, "org", "rsv", "sub", voucher, own, 0, 1 << 50, prices)


ratios = st.tuples(st.integers(0, 20), st.integers(1, 20)).filter(lambda pair: pair[0] <= pair[1])


@settings(max_examples=300)
@given(
    st.integers(0, 2000),
    st.integers(0, 2000),
    st.lists(ratios, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 300)), max_size=40),
)
def test_no_order_of_calls_passes_the_voucher_or_the_credit(
    voucher: int, own: int, shares: list[tuple[int, int]], calls: list[tuple[int, int, int]]
) -> None:
    """Against fractions: what is admitted is exactly what fits, and giving back restores it."""
    lines = [PriceLine(f"p{i}", f"a/m{i}", "calls", 1, num, den) for i, (num, den) in enumerate(shares)]
    held = HeldLease(lease("subsidised", voucher, own, *lines))
    paid, owed = Fraction(0), Fraction(0)
    for which, amount, actual in calls:
        line = lines[which % len(lines)]
        share = Fraction(line.ratio_num, line.ratio_den)
        fits = paid + amount * share <= voucher and owed + amount * (1 - share) <= own
        assert held.reserve(amount, line) == fits
        if not fits:
            continue
        reserved = Reserved(held, line, amount, "lea", "subsidised")
        kept = reserved.amount_for({"calls": actual})
        assert kept == min(amount, actual)
        reserved.keep(kept)
        paid += kept * share
        owed += kept * (1 - share)
    left = held.left()
    assert left == {"remaining_micro": int((voucher - paid) // 1), "credit_micro": int((own - owed) // 1)}


def test_a_cancelled_reservation_leaves_no_trace_and_is_cancelled_once() -> None:
    held = HeldLease(lease())
    line = held.lease.prices[0]
    assert held.reserve(100, line)
    reserved = Reserved(held, line, 100, "lea", "subsidised")
    reserved.cancel()
    reserved.cancel()
    assert held.left() == {"remaining_micro": 1000, "credit_micro": 1000}


def test_own_cost_takes_nothing_of_a_voucher() -> None:
    held = HeldLease(lease("self_pay", 0, 100))
    line = held.lease.prices[0]
    assert held.reserve(100, line)
    assert not held.reserve(1, line)


def test_a_free_lease_admits_everything() -> None:
    held = HeldLease(lease("free", 0, 0))
    assert held.reserve(10**12, held.lease.prices[0])


@settings(max_examples=100)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), ratios)
def test_an_extension_adds_what_the_market_added_though_calls_went_on(
    used_before: int, used_meanwhile: int, granted: int, share: tuple[int, int]
) -> None:
    line = PriceLine("p", "a/m", "calls", 1, *share)
    held = HeldLease(lease("subsidised", 1000, 1000, line))
    held.reserve(used_before, line)
    asked_with = held.left()
    held.reserve(used_meanwhile, line)
    answer = lease("subsidised", asked_with["remaining_micro"] + granted, asked_with["credit_micro"], line,
                   PriceLine("q", "a/n", "calls", 1, 1, 7))  # fmt: skip
    held.extend(answer, asked_with)
    paid = (used_before + used_meanwhile) * Fraction(*share)
    assert held.left()["remaining_micro"] == (1000 + granted - paid) // 1


def test_a_lapsed_filing_is_no_price() -> None:
    line = PriceLine("p", "a/m", "calls", 1, 1, 3, "2026-01-01T00:00:00+08:00")
    held = HeldLease(lease("subsidised", 1, 1, line))
    lapse = 1_767_196_800_000
    assert held.line_for("a/m", lapse) is line
    assert held.line_for("a/m", lapse + 1) is None
    assert held.line_for("a/other", 0) is None


# --- keys -------------------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    from serving import keycache

    clock = Clock()
    monkeypatch.setattr(keycache.time, "monotonic", lambda: clock.now)
    return clock


async def test_a_key_is_asked_for_once_by_many_and_then_known(clock: Clock) -> None:
    admission = MemoryAdmission(keys={"k": FACTORY})
    keys = KeyCache(admission)
    found = await asyncio.gather(*(keys.principal_of(b"k") for _ in range(20)))
    assert set(found) == {FACTORY}
    assert keys.peek(b"k") is FACTORY
    assert admission.authenticated == 1


async def test_no_answer_is_used_beyond_a_second(clock: Clock) -> None:
    admission = MemoryAdmission(keys={"k": FACTORY})
    keys = KeyCache(admission)
    await keys.principal_of(b"k")
    clock.now += 0.6
    assert keys.peek(b"k") is FACTORY  # and the question is under way
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert admission.authenticated == 2
    del admission.keys["k"]
    clock.now += 1.01
    assert keys.peek(b"k") is None
    with pytest.raises(Unauthenticated):
        await keys.principal_of(b"k")


async def test_a_key_in_steady_use_that_is_revoked_is_refused_within_a_second(clock: Clock) -> None:
    admission = MemoryAdmission(keys={"k": FACTORY})
    keys = KeyCache(admission)
    await keys.principal_of(b"k")
    del admission.keys["k"]
    for _ in range(11):
        clock.now += 0.1
        keys.peek(b"k")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert keys.peek(b"k") is None


async def test_a_forgotten_key_is_asked_for_again(clock: Clock) -> None:
    admission = MemoryAdmission(keys={"k": FACTORY, "o": OTHER})
    keys = KeyCache(admission)
    await keys.principal_of(b"k")
    await keys.principal_of(b"o")
    keys.forget("key_1")
    assert (keys.peek(b"k"), keys.peek(b"o")) == (None, OTHER)
    keys.forget()
    assert keys.peek(b"o") is None


async def test_a_wrong_key_costs_one_question_a_second(clock: Clock) -> None:
    admission = MemoryAdmission()
    keys = KeyCache(admission)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await keys.principal_of(b"wrong")
    assert admission.authenticated == 1
    clock.now += 1.1
    admission.keys["wrong"] = FACTORY
    assert await keys.principal_of(b"wrong") is FACTORY


async def test_keys_go_on_for_a_minute_while_the_market_cannot_be_asked(clock: Clock) -> None:
    admission = MemoryAdmission(keys={"k": FACTORY})
    keys = KeyCache(admission)
    await keys.principal_of(b"k")

    async def down(token: str) -> Any:
        raise ConnectionError

    admission.authenticate = down  # type: ignore[method-assign]
    clock.now += 30
    assert await keys.principal_of(b"k") is FACTORY
    clock.now += 31
    with pytest.raises(Unavailable):
        await keys.principal_of(b"k")
    with pytest.raises(Refusal):
        await keys.principal_of(b"never-seen")


async def test_the_cache_is_bounded(clock: Clock) -> None:
    admission = MemoryAdmission(keys={f"k{number}": FACTORY for number in range(50)})
    keys = KeyCache(admission, max_entries=10)
    for number in range(50):
        await keys.principal_of(b"k%d" % number)
        with pytest.raises(Unauthenticated):
            await keys.principal_of(b"w%d" % number)
    assert len(keys._known) == len(keys._refused) == 10


@pytest.mark.parametrize("token", [b"", b"x" * 600])
async def test_no_key_is_no_question(token: bytes, clock: Clock) -> None:
    admission = MemoryAdmission()
    with pytest.raises(Unauthenticated):
        await KeyCache(admission).principal_of(token)
    assert admission.authenticated == 0


def test_the_units_written_down_rate_to_the_amount_charged_where_a_run_outlasts_its_reservation() -> None:
    line = PriceLine("p", "a/m", "ms", 7, 1, 3)
    held = HeldLease(lease("subsidised", 1000, 1000, line))
    assert held.reserve(70, line)
    reserved = Reserved(held, line, 70, "lea", "subsidised")
    units = reserved.units_for({"calls": 1, "rows": 3, "ms": 15})
    assert units == {"calls": 1, "rows": 3, "ms": 10}
    assert reserved.amount_for(units) == rate_usage(units, line) == 70
    assert reserved.units_for({"calls": 1, "ms": 4}) == {"calls": 1, "ms": 4}
