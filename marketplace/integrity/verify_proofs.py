"""The trees of the days and their chain: does what is in a pack lead to the roots that its days were closed with?"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from marketplace.integrity.chain import GENESIS, SEGMENT, SEGMENT_FIELDS, chain_of, leaf_count
from marketplace.integrity.merkle import leaf_hash, root_by
from marketplace.integrity.opened import Pack
from marketplace.integrity.verify_amounts import Check

Roots = dict[str, tuple[str, int]]  # day → its root, and how many leaves that is over
Spans = dict[tuple[str, int], list[tuple[int, int]]]  # (node, epoch) → first and last record of what is proved


def verify_days(days: Iterator[Any], check: Check) -> tuple[Roots, dict[str, Any] | None]:
    """The chain; answers each day's root and how many leaves it is over, and the last day."""
    chain, roots, day = GENESIS, Roots(), None
    for day in days:
        chain = chain_of(chain, day)
        check(chain == day["chain"], f"days.json: {day['day']} does not follow the day before")
        chain = day["chain"]
        roots[day["day"]] = (day["root"], leaf_count(day))
    return roots, day


def leads_to(leaf: bytes, proof: dict[str, Any], roots: Roots) -> bool:
    path = [bytes.fromhex(each) for each in proof["path"]]
    root = root_by(leaf_hash(leaf), proof["index"], proof["size"], path).hex()
    return roots.get(proof["day"]) == (root, proof["size"])


def verify_proofs(pack: Pack, roots: Roots, check: Check) -> int:
    """Every transfer of a closed day leads to its root; answers how many do."""
    anchored, stream = 0, pack.json("proofs.json")
    for transfer in stream.keys():  # noqa: SIM118  (a stream, no dict)
        proof = stream.value()
        found = pack.tables.execute("SELECT leaf, proved FROM leaf WHERE transfer = ?", (transfer,)).fetchone()
        if found is None:
            continue
        leaf, proved = found
        check(not proved, f"proofs.json: transfer {transfer} stands twice")
        pack.tables.execute("UPDATE leaf SET proved = 1 WHERE transfer = ?", (transfer,))
        if proof is None:
            continue
        same = leads_to(leaf, proof, roots)
        check(same, f"transfer {transfer} is not what {proof['day']} was closed with")
        anchored += same
    stream.finish()
    (without,) = pack.tables.execute("SELECT COUNT(*) FROM leaf WHERE NOT proved").fetchone()
    check(not without, f"proofs.json: lacks {without} transfers")
    return anchored


def verify_segments(segments: Iterator[Any], roots: Roots, check: Check) -> tuple[int, int, Spans]:
    """Every journal segment of a closed day leads to its root; answers how many there are, how many do, and what these
    span."""
    recorded = proved = 0
    spans: Spans = defaultdict(list)
    for each in segments:
        recorded += 1
        segment, proof = json.loads(each["leaf"]), each["proof"]
        name = f"segments.json: {segment['node']}-{segment['epoch']} up to {segment['last_seq']}"
        check(set(segment) == {"leaf", *SEGMENT_FIELDS} and segment["leaf"] == SEGMENT, f"{name}: no segment")
        counted = segment["last_seq"] - segment["first_seq"] + 1 == segment["count"]
        check(counted, f"{name}: {segment['count']} records is not what its numbers span")
        if proof is None:
            continue
        same = leads_to(each["leaf"].encode(), proof, roots)
        check(same, f"{name} is not what {proof['day']} was closed with")
        if same:
            proved += 1
            spans[segment["node"], segment["epoch"]].append((segment["first_seq"], segment["last_seq"]))
    return recorded, proved, {journal: _joined(each) for journal, each in spans.items()}


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What they cover together: most begin where their journal does."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
