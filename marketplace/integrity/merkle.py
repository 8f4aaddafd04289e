"""Merkle trees as RFC 6962 has them: leaves and inner nodes are hashed apart, a lone node goes up as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(content: bytes) -> bytes:
    return hashlib.sha256(b"\0" + content).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; of none, SHA-256 of nothing."""
    if not leaves:
        return EMPTY
    level = list(leaves)
    while len(level) > 1:
        level = _up(level)
    return level[0]


def proof_of(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings from a leaf up to the root. Raises IndexError."""
    return path_in(levels_of(leaves), index)


def levels_of(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree, the leaves first: for many proofs of one tree."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(_up(levels[-1]))
    return levels


def path_in(levels: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """As `proof_of`, of a tree whose levels are known."""
    if not 0 <= index < len(levels[0]):
        raise IndexError(index)
    path = []
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index //= 2
    return path


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


def _up(level: list[bytes]) -> list[bytes]:
    return [_inner(level[at], level[at + 1]) if at + 1 < len(level) else level[at] for at in range(0, len(level), 2)]


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
