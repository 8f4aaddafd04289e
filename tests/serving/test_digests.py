"""Usage ids are ULIDs as any library reads them, and sort by time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from serving.digests import mint_usage_id, mint_usage_ids

instants_ms = st.integers(0, (1 << 48) - 1)


@given(st.lists(instants_ms, min_size=1, max_size=20))
def test_an_id_is_a_ulid_of_its_instant_whatever_was_minted_before(instants: list[int]) -> None:
    ids = [mint_usage_id(at_ms) for at_ms in instants]
    assert [int.from_bytes(ULID.from_str(each).bytes[:6]) for each in ids] == instants
    assert len(set(ids)) == len(ids)
    assert [str(ULID.from_str(each)) for each in ids] == ids


@given(instants_ms, st.integers(1, 3000))
def test_ids_of_one_instant_sort_in_the_order_given(at_ms: int, count: int) -> None:
    ids = mint_usage_ids(count, at_ms)
    assert ids == sorted(ids)
    assert {ULID.from_str(each).bytes[:6] for each in ids} == {at_ms.to_bytes(6)}


def test_the_random_part_fills_all_its_bits() -> None:
    seen = 0
    for _ in range(200):
        seen |= int.from_bytes(ULID.from_str(mint_usage_id(1)).bytes[6:])
    assert seen == (1 << 80) - 1
