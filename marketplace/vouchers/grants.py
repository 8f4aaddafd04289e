"""How much a lease carries and how long it lives: pure decisions in integers.

Voucher entitlement is granted in whole fen, an enterprise's own credit in micro-fen (10^-6 fen).
"""

from __future__ import annotations

from collections.abc import Iterable

from serving.metering import MICRO_PER_FEN

MAX_LEASE_FEN = 20_000  # L_max: 200 yuan of voucher in one node's hands
MAX_CREDIT_MICRO = 50_000 * MICRO_PER_FEN  # 500 yuan of own cost


def ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def voucher_share_micro(amount_micro: int, num: int, den: int) -> int:
    """The voucher's share of an amount, rounded up: what a lease must carry for the call to be admitted."""
    return ceil_div(amount_micro * num, den)


def own_share_micro(amount_micro: int, num: int, den: int) -> int:
    """The enterprise's share, rounded up."""
    return amount_micro - amount_micro * num // den


def decide_grant(available_fen: int, nodes: int, short_fen: int, held_fen: int) -> int | None:
    """Fen to add to a lease; None where not even the call in hand is covered.

    `short_fen`: what the call needs beyond what the node holds (`held_fen`, whole fen). Otherwise the lease is filled
    up to min(L_max, available / (2 · nodes)): at most half of what is left, so that near exhaustion a grant is just one
    call.
    """
    if short_fen > available_fen:
        return None
    target = min(MAX_LEASE_FEN, available_fen // (2 * nodes))
    return min(available_fen, max(short_fen, target - held_fen))


def decide_credit(need_micro: int, wanted_micro: int, held_micro: int, room_micro: int | None) -> int | None:
    """Micro-fen of own credit to add; None where the cap's room (None: no cap) does not cover the call in hand."""
    short = max(0, need_micro - held_micro)
    if room_micro is not None and short > room_micro:
        return None
    add = max(short, wanted_micro - held_micro, 0)
    return add if room_micro is None else min(add, max(0, room_micro))


def own_credit_for(voucher_micro: int, num: int, den: int) -> int:
    """The own cost that comes with drawing `voucher_micro` of a voucher at num / den."""
    return ceil_div(voucher_micro * (den - num), num)


def decide_expiry(at_ms: int, lease_seconds: int, ends: Iterable[int | None]) -> int:
    """The instant from which a lease admits nothing more: its life, or the first of what ends earlier."""
    return min([at_ms + lease_seconds * 1000, *(end for end in ends if end is not None and end > at_ms)])
