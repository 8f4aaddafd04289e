"""Merkle trees as RFC 6962 has them: leaves and inner nodes are hashed apart, a lone node goes up as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(content: bytes) -> bytes:
    return hashlib.sha256(b"\0" + content).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; of none, SHA-256 of nothing."""
    if not leaves:
        return EMPTY
    level = list(leaves)
    while len(level) > 1:
        level = list(upper(level))
    return level[0]


def proof_of(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings from a leaf up to the root. Raises IndexError."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(list(upper(levels[-1])))
    return [levels[level][at] for level, at in siblings(index, len(leaves))]


def siblings(index: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the siblings of a leaf stand from the leaves up: level (the leaves' is 0) and place. Raises IndexError."""
    if not 0 <= index < size:
        raise IndexError(index)
    level = 0
    while size > 1:
        if index ^ 1 < size:
            yield level, index ^ 1
        index, size, level = index // 2, (size + 1) // 2, level + 1


def root_by(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a proof leads to. `ValueError` where the path is not as long as a tree of `size` leaves asks."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} of {size}")
    left, node = list(path), leaf
    while size > 1:
        if index ^ 1 < size:
            if not left:
                raise ValueError("the proof is too short")
            sibling = left.pop(0)
            node = _inner(sibling, node) if index & 1 else _inner(node, sibling)
        index, size = index // 2, (size + 1) // 2
    if left:
        raise ValueError("the proof is too long")
    return node


def upper(level: Iterable[bytes]) -> Iterator[bytes]:
    """The level above one that is read node by node."""
    nodes = iter(level)
    for left in nodes:
        right = next(nodes, None)
        yield left if right is None else _inner(left, right)


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
