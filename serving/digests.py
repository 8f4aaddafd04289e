"""Digests and usage ids: what a usage record says of a call instead of its content. About a microsecond each."""

from __future__ import annotations

import hashlib
import random
import time
import zlib
from collections.abc import Mapping

from model_store.tensors import Array

SMALL_BYTES = 64 << 10
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32, as the ULID specification has it
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_recent: tuple[int, str] = (-1, "")  # the newest instant and how it is written: many calls share a millisecond
_random = random.Random()  # noqa: S311  # seeded by the system; ids are unique, not secret


def mint_usage_id(now_ms: int | None = None) -> str:
    """A ULID: 48 bits of Unix milliseconds, 80 random bits, 26 characters that sort by time."""
    global _recent
    at = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    pairs = _PAIRS
    of, instant = _recent
    if at != of:
        instant = "".join(pairs[at >> shift & 1023] for shift in (40, 30, 20, 10, 0))
        _recent = (at, instant)
    high, low = _random.getrandbits(40), _random.getrandbits(40)
    return (
        f"{instant}{pairs[high >> 30]}{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
        f"{pairs[low >> 30]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}{pairs[low & 1023]}"
    )


def mint_usage_ids(count: int, now_ms: int) -> list[str]:
    """ULIDs of one instant that sort in the order given: 60 random bits, and a count (under 2^20) in the last 20."""
    first = mint_usage_id(now_ms)[:22]
    pairs = _PAIRS
    return [first + pairs[number >> 10] + pairs[number & 1023] for number in range(count)]


def digest_of_bytes(content: bytes, strong: bool = False) -> str:
    """`b2:` BLAKE2b-128; over 64 KiB `crc:` CRC-32 and the length (a hundredth of the time), unless `strong`."""
    if strong or len(content) <= SMALL_BYTES:
        return "b2:" + hashlib.blake2b(content, digest_size=16).hexdigest()
    return f"crc:{zlib.crc32(content):08x}:{len(content)}"


def digest_of_arrays(arrays: Mapping[str, Array]) -> str:
    """The digest of tensors in order: their bytes, not their names. Same two forms as `digest_of_bytes`."""
    total = 0
    array: Array
    for array in arrays.values():
        total += array.nbytes
    if total <= SMALL_BYTES and len(arrays) == 1 and array.dtype.kind == "f" and array.flags.c_contiguous:
        return "b2:" + hashlib.blake2b(array.data, digest_size=16).hexdigest()  # the usual case, with less ado
    if total <= SMALL_BYTES:
        strong = hashlib.blake2b(digest_size=16)
        for array in arrays.values():
            strong.update(_content(array))
        return "b2:" + strong.hexdigest()
    crc = 0
    for array in arrays.values():
        crc = zlib.crc32(_content(array), crc)
    return f"crc:{crc:08x}:{total}"


def _content(array: Array) -> bytes | memoryview:
    if array.dtype.kind == "O":
        return b"\0".join(item if isinstance(item, bytes) else str(item).encode() for item in array.flat)
    if array.flags.c_contiguous and array.size and array.dtype.kind in "biuf":
        return array.reshape(-1).view("u1").data
    return array.tobytes()
