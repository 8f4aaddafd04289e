"""The last step down: a pack's usage records held against the journal files themselves, where an auditor has them."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from marketplace.integrity.verify import Report, read_pack
from serving.journal_format import EndEntry, JournalUnreadable, StartEntry, UsageEntry, segment_path, sha256_of_prefix
from serving.journal_summary import portions
from serving.metering import UsageRecord

Rows = dict[int, dict[str, str]]


def verify_journals(path: Path, folder: Path, report: Report) -> None:
    """Of every segment in the pack whose file is in `folder`: are its bytes those that were hashed, and does each usage
    record of the pack stand in them, at its place and as it was claimed? What does not agree goes into `report`.

    The pack itself has been judged before (`verify_pack`). Never raises for what is in pack or journals.
    """
    try:
        files = read_pack(path)
        segments = [json.loads(each["leaf"]) for each in json.loads(files.get("segments.json", b"[]"))]
        rows: dict[tuple[str, int], Rows] = defaultdict(dict)
        for row in csv.DictReader(io.StringIO(files["usage.csv"].decode())):
            rows[row["node"], int(row["epoch"])][int(row["seq"])] = row
        held = compared = 0
        for segment in segments:
            found = _hold(segment, folder, rows[segment["node"], segment["epoch"]], report)
            held += found is not None
            compared += found or 0
    except (KeyError, ValueError, TypeError, OSError) as error:
        report.wrong.append(f"the journals cannot be compared: {type(error).__name__}: {error}")
        return
    report.facts |= {"journal_files_held": held, "usage_found_in_journals": compared}


def _hold(segment: dict[str, Any], folder: Path, rows: Rows, report: Report) -> int | None:
    """How many records of the pack stand in this segment's file; None where the file is not there."""
    path = segment_path(folder, segment["node"], segment["epoch"])
    if not path.exists():
        return None
    if path.stat().st_size < segment["bytes"] or sha256_of_prefix(path, segment["bytes"]) != segment["sha256"]:
        report.wrong.append(f"{path.name}: its first {segment['bytes']} bytes are not those that were hashed")
        return None
    wanted = {seq for seq in rows if segment["first_seq"] <= seq <= segment["last_seq"]}
    found = 0
    try:
        for portion in portions(path):
            for entry in portion.entries:
                row = rows.get(entry.seq) if entry.seq in wanted else None
                if row is None or not isinstance(entry, UsageEntry | EndEntry | StartEntry):
                    continue
                found += 1
                wanted.discard(entry.seq)
                same = _same(row, entry.usage, whole=not isinstance(entry, StartEntry))
                report.check(same, f"{path.name}: record {entry.seq} is not what {row['usage_id']} was claimed for")
    except JournalUnreadable as error:
        report.wrong.append(f"{path.name}: {error}")
    report.check(not wanted, f"{path.name}: has no records {sorted(wanted)[:5]} that the pack claims")
    return found


def _same(row: dict[str, str], usage: UsageRecord, *, whole: bool) -> bool:
    """A stream that never ended is charged at its last counter: its start says who and what, not how much."""
    told = (usage.usage_id, usage.organisation, usage.model, usage.price_version, usage.occurred_at_ms)
    names = ("usage_id", "organisation_id", "model", "price_version", "occurred_at_ms")
    same = tuple(str(each) for each in told) == tuple(row[name] for name in names)
    charged = (str(usage.amount_micro), str(usage.units.get(row["unit"], 0)))
    return same and (not whole or charged == (row["amount_micro"], row["units"]))
