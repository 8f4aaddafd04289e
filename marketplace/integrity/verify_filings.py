"""Of a pack's line: was each record that the voucher paid its share of under a filing that was valid at its instant?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date
from itertools import groupby
from typing import Any

from marketplace.clock import end_of_day_ms, start_of_day_ms
from marketplace.integrity.opened import Pack

_EVER = 1 << 62
_QUERY = (
    "SELECT filing, usage_id, CAST(occurred_at_ms AS INTEGER) FROM leaf JOIN usage USING (transfer) "
    "WHERE line = ? AND lease_kind = 'subsidised' ORDER BY filing, usage_id"
)


def verify_filings(pack: Pack, line: dict[str, Any], check: Callable[[bool, str], None]) -> int:
    """usage.csv against the filings that the frozen line names, and their days where the voucher asks for filed models.

    Answers how many records have none recorded: usage from before that was kept, which is told and not refused. A
    document from before then names no filings at all, so all of its records are such.
    """
    name, unfiled = str(line["line"]), 0
    frozen = {str(each["id"]): each for each in line.get("filings", ())}
    found = set()
    for filing, records in groupby(pack.tables.execute(_QUERY, (name,)), key=lambda record: str(record[0])):
        found.add(filing)
        told = frozen.get(filing)
        first, last = _days(told) if told and filing and line["filing_required"] else (-_EVER, _EVER)
        count, digest, outside = 0, hashlib.sha256(), ""
        for _, usage_id, at_ms in records:
            count += 1
            digest.update(f"{usage_id}\n".encode())
            outside = outside or ("" if first <= at_ms <= last else usage_id)
        unfiled += 0 if filing else count
        if told is None:
            known = not filing and "filings" not in line
            check(known, f"{name}: {count} records are under the filing {filing!r:.60}, which the line does not name")
            continue
        same = (count, digest.hexdigest()) == (told["usage_count"], told["usage_sha256"])
        number = f"filing {told['number'] or '(not recorded)'!s:.60}"
        check(same, f"{name}: the records under {number} are not those that were frozen")
        check(not outside, f"{name}: {number} was not valid when {outside} was used")
    check(found >= set(frozen), f"{name}: names filings that none of its records was under")
    return unfiled


def _days(filing: dict[str, Any]) -> tuple[int, int]:
    """The first and the last instant of a filing's days in Asia/Shanghai."""
    until = filing["valid_until"]
    first = start_of_day_ms(date.fromisoformat(filing["valid_from"]))
    return first, end_of_day_ms(date.fromisoformat(until)) if until else _EVER
