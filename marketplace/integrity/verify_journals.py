"""The last step down: a pack's usage records held against the journal files themselves, where an auditor has them.

Journals are read in portions, the records that a portion should have from the pack's table: a portion is in memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marketplace.integrity.judgements import Judgement
from marketplace.integrity.opened import UNREADABLE, Pack, open_pack
from marketplace.integrity.verify import Report
from serving.journal_format import (
    EndEntry,
    JournalUnreadable,
    Segment,
    StartEntry,
    UsageEntry,
    read_segment,
    segment_path,
    sha256_of_prefix,
)
from serving.journal_summary import PORTION
from serving.metering import UsageRecord

_NAMES = ("usage_id", "organisation_id", "model", "price_version", "occurred_at_ms", "unit", "units", "amount_micro")
_ROWS = (
    "SELECT seq, usage_id, organisation_id, model, price_version, occurred_at_ms, unit, units, amount_micro FROM usage "
    "WHERE node = ? AND epoch = ? AND seq BETWEEN ? AND ? ORDER BY seq"
)
_SHOWN = 5
Row = dict[str, str]


def verify_journals(path: Path, folder: Path, report: Report) -> None:
    """Of every segment in the pack whose file is in `folder`: are its bytes those that were hashed, and does each usage
    record of the pack stand in them, at its place and as it was claimed? What does not agree goes into `report`.

    The pack itself has been judged before (`verify_pack`). Never raises for what is in pack or journals.
    """
    held, journals = 0, defaultdict[tuple[str, int], _Journal](_Journal)
    try:
        with open_pack(path) as pack:
            pack.take_usage(lambda row, is_new: None)
            for each in pack.items("segments.json") if "segments.json" in pack.names else ():
                segment = json.loads(each["leaf"])
                held += _hold(pack, segment, folder, journals[segment["node"], segment["epoch"]], report)
    except UNREADABLE as error:
        report.wrong.append(f"the journals cannot be compared: {type(error).__name__}: {error}")
        return
    if held:
        report.made(Judgement.JOURNALS)
    compared = sum(journal.found for journal in journals.values())
    report.facts |= {"journal_files_held": held, "usage_found_in_journals": compared}


@dataclass(slots=True)
class _Journal:
    """How far a journal has been compared (record, and the byte after it), and how many of the pack's were in it.

    Segments of one journal mostly begin with it, each a longer one: the next goes on where the last one ended.
    """

    upto: int = 0
    offset: int = 0
    found: int = 0


def _hold(pack: Pack, segment: dict[str, Any], folder: Path, journal: _Journal, report: Report) -> bool:
    """Compare what of this segment has not been compared yet; False where its file is not there, or is another."""
    path, last = segment_path(folder, segment["node"], segment["epoch"]), segment["last_seq"]
    if not path.exists():
        return False
    if path.stat().st_size < segment["bytes"] or sha256_of_prefix(path, segment["bytes"]) != segment["sha256"]:
        report.wrong.append(f"{path.name}: its first {segment['bytes']} bytes are not those that were hashed")
        return False
    journal.upto = max(journal.upto, segment["first_seq"] - 1)
    missing: list[int] = []
    try:
        while journal.upto < last:
            portion = read_segment(path, journal.offset, min(PORTION, last - journal.upto))
            if not portion.entries:
                break
            missing += _compare(pack, segment, portion, journal, report)
    except JournalUnreadable as error:
        report.wrong.append(f"{path.name}: {error}")
    missing += _rows(pack, segment, journal.upto + 1, last)
    report.check(not missing, f"{path.name}: has no records {missing[:_SHOWN]} that the pack claims")
    return True


def _compare(pack: Pack, segment: dict[str, Any], portion: Segment, journal: _Journal, report: Report) -> list[int]:
    """A portion with the pack's records of it; answers which of these it does not have."""
    end = portion.entries[-1].seq
    rows = _rows(pack, segment, journal.upto + 1, min(end, segment["last_seq"]))
    for entry in portion.entries:
        if not isinstance(entry, UsageEntry | EndEntry | StartEntry):
            continue
        for row in rows.pop(entry.seq, ()):
            journal.found += 1
            where = f"{segment['node']}-{segment['epoch']}: record {entry.seq}"
            report.check(_same(row, entry), f"{where} is not what {row['usage_id']} was claimed for")
    journal.upto, journal.offset = max(journal.upto, end), portion.next_offset
    return list(rows)


def _rows(pack: Pack, segment: dict[str, Any], first: int, last: int) -> dict[int, list[Row]]:
    """The pack's records of that journal from `first` to `last`, by their place."""
    found: dict[int, list[Row]] = {}
    for seq, *values in pack.tables.execute(_ROWS, (segment["node"], segment["epoch"], first, last)):
        found.setdefault(seq, []).append(dict(zip(_NAMES, values, strict=True)))
    return found


def _same(row: Row, entry: UsageEntry | EndEntry | StartEntry) -> bool:
    """A stream that never ended is charged at its last counter: its start says who and what, not how much."""
    usage: UsageRecord = entry.usage
    told = (usage.usage_id, usage.organisation, usage.model, usage.price_version, usage.occurred_at_ms)
    names = ("usage_id", "organisation_id", "model", "price_version", "occurred_at_ms")
    same = tuple(str(each) for each in told) == tuple(row[name] for name in names)
    charged = (str(usage.amount_micro), str(usage.units.get(row["unit"], 0)))
    return same and (isinstance(entry, StartEntry) or charged == (row["amount_micro"], row["units"]))
