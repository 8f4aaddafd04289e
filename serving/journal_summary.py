"""What one journal file holds and whether it is sound, in one pass of bounded memory: for `algomart journal verify`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from serving.journal_format import (
    EndEntry,
    Entry,
    ProgressEntry,
    Segment,
    StartEntry,
    UsageEntry,
    frame_of,
    read_segment,
    sha256_of_prefix,
)

PORTION = 10_000


class Summary(msgspec.Struct):
    """`state`: sealed | open (it ends cleanly, and a node may still write it) | torn | damaged (not what was sealed).

    `amount_micro` sums the finished runs; `running`: streams without an end; `sha256` of the bytes before the seal.
    """

    file: str
    node: str
    epoch: int
    state: str
    bytes: int
    records: int = 0
    usage: int = 0
    running: int = 0
    first_seq: int = 0
    last_seq: int = 0
    amount_micro: int = 0
    first_occurred_ms: int = 0
    last_occurred_ms: int = 0
    sha256: str = ""
    problems: list[str] = []
    leases: dict[str, int] = {}  # lease → micro-fen under it


def portions(path: Path) -> Iterator[Segment]:
    """A journal in portions, in order. Raises `JournalUnreadable`, OSError."""
    offset, more = 0, True
    while more:
        segment = read_segment(path, offset, PORTION)
        offset, more = segment.next_offset, segment.more
        yield segment


def summarise(path: Path) -> Summary:
    """Read a journal to its end. Raises `JournalUnreadable` where even its header cannot be read, and OSError."""
    found: Summary | None = None
    running: set[str] = set()
    last: Segment | None = None
    due = 0
    for last in portions(path):
        if found is None:
            header = last.header
            found = Summary(
                path.name, header.node, header.epoch, "open", path.stat().st_size, first_seq=header.first_seq
            )
            due = header.first_seq
        for entry in last.entries:
            if entry.seq != due:  # a portion's reader knows only its own beginning
                found.problems.append(f"record {entry.seq} stands where {due} was due")
            due = entry.seq + 1
            _count(found, entry, running)
    assert found is not None
    assert last is not None
    found.running, found.last_seq = len(running), due - 1
    _judge(found, path, last)
    return found


def _count(found: Summary, entry: Entry, running: set[str]) -> None:
    found.records += 1
    if isinstance(entry, StartEntry):
        running.add(entry.usage.usage_id)
    elif isinstance(entry, UsageEntry | EndEntry):
        usage = entry.usage
        running.discard(usage.usage_id)
        found.usage += 1
        found.amount_micro += usage.amount_micro
        found.leases[usage.lease_id] = found.leases.get(usage.lease_id, 0) + usage.amount_micro
        found.last_occurred_ms = max(found.last_occurred_ms, usage.occurred_at_ms)
        found.first_occurred_ms = min(found.first_occurred_ms or usage.occurred_at_ms, usage.occurred_at_ms)
    else:
        assert isinstance(entry, ProgressEntry)


def _judge(found: Summary, path: Path, last: Segment) -> None:
    """What the end of the file says of the rest."""
    if last.seal is not None:
        found.state = "sealed"
        found.sha256 = sha256_of_prefix(path, last.next_offset - len(frame_of(last.seal)))
        if found.sha256 != last.seal.sha256:
            found.problems.append("the bytes are not those that were sealed")
        if last.seal.count != found.records:
            found.problems.append(f"the seal counts {last.seal.count} records, there are {found.records}")
    if last.torn is not None:
        found.problems.append(f"torn at byte {last.torn.offset}: {last.torn.reason}")
    if found.problems:
        found.state = "torn" if last.seal is None and last.torn is not None else "damaged"
