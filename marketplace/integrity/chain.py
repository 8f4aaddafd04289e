"""What a day's tree and the chain are made of, by layout: pure, for the market and for whoever verifies without it.

Layout 1 (until segments were leaves): the day's transfers by id. Layout 2: these, then the journal segments recorded
on that day by node, epoch, kind and bytes. A day keeps the layout that it was closed with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GENESIS = "0" * 64
LAYOUT = 2
SEGMENT = "segment/1"
SEGMENT_FIELDS = ("node", "epoch", "kind", "bytes", "first_seq", "last_seq", "count", "sha256", "recorded_at_ms")


def canonical(document: Any) -> bytes:
    """JSON of one spelling: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def segment_leaf(segment: Mapping[str, Any]) -> bytes:
    """A journal segment as it is hashed. No transfer's leaf has a field `leaf`, so neither passes for the other."""
    return canonical({"leaf": SEGMENT} | {name: segment[name] for name in SEGMENT_FIELDS})


def leaf_count(day: Mapping[str, Any]) -> int:
    """How many leaves the tree of a closed day has."""
    return int(day["transfers"]) + int(day.get("segments", 0))


def chain_of(previous: str, day: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the chain so far and this day's facts, one line each. `ValueError`: an unknown layout."""
    layout = day.get("layout", 1)
    if layout == 1 and not day.get("segments", 0):
        facts = [day["day"], day["transfers"], day["root"]]
    elif layout == LAYOUT:
        facts = [layout, day["day"], day["transfers"], day["segments"], day["root"]]
    else:
        raise ValueError(f"{day['day']}: no layout {layout!r} with {day.get('segments', 0)} segments is known")
    return hashlib.sha256("".join(f"{fact}\n" for fact in (previous, *facts)).encode()).hexdigest()
