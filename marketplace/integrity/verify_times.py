"""Of a pack's line: was it used and frozen in time? Instants are Unix milliseconds, days are those of Asia/Shanghai.

A charge belongs to the day of its own instant, which is that of the last use among those that made it whole (decision
46). So its records may be older than the period, as many as there are. Later than the period can only be what had
waited for the charge, used under the same contract and ingested before it from another journal: that is less than a
fen, and each correction may have left up to a fen more waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.integrity.opened import Pack
from marketplace.integrity.verify_amounts import MICRO, Check

_LATER = (
    "SELECT transfer, usage_id, CAST(amount_micro AS INTEGER), correction FROM leaf JOIN usage USING (transfer) "
    "WHERE line = ? AND CAST(occurred_at_ms AS INTEGER) > ? ORDER BY transfer, usage_id"
)
_MARKED = "SELECT COUNT(*) FROM leaf JOIN usage USING (transfer) WHERE line = ? AND correction <> ''"
_EARLIER = (
    "SELECT COUNT(*) FROM leaf JOIN usage USING (transfer) WHERE line = ? AND CAST(occurred_at_ms AS INTEGER) < ?"
)
_TOO_LATE = (
    "SELECT usage_id FROM leaf JOIN usage USING (transfer) WHERE line = ? AND lease_kind = 'subsidised' "
    "AND CAST(occurred_at_ms AS INTEGER) > ? ORDER BY usage_id LIMIT 1"
)
_LAST_USE = "SELECT 1 FROM usage WHERE transfer = ? AND CAST(occurred_at_ms AS INTEGER) = ? LIMIT 1"


@dataclass(frozen=True, slots=True)
class Period:
    """Of a batch: its first and last day, both counted, and when it was frozen."""

    first_day: date
    last_day: date
    frozen_at_ms: int

    @classmethod
    def of(cls, head: dict[str, Any]) -> Period:
        """`ValueError` for a day that is none."""
        first, last = date.fromisoformat(head["from_day"]), date.fromisoformat(head["to_day"])
        return cls(first, last, head["frozen_at_ms"])


def verify_times(pack: Pack, line: dict[str, Any], period: Period, check: Check) -> tuple[int, int]:
    """Charges and records against the period, what the voucher paid its share of against its use-by day, the freeze
    against its redeem-by day, where the document has one. Answers how many records are older than the period, and how
    many later."""
    name = str(line["line"])
    _verify_use_by(pack, name, date.fromisoformat(line["use_by"]), check)
    redeem_by = line.get("redeem_by")
    if redeem_by:
        frozen = policy_date(period.frozen_at_ms)
        check(frozen <= date.fromisoformat(redeem_by), f"{name}: frozen on {frozen}, to be redeemed by {redeem_by}")
    first_ms, last_ms = start_of_day_ms(period.first_day), end_of_day_ms(period.last_day)
    for each in line["transfers"]:
        if each["kind"] == "P5":
            _verify_charge(pack, name, each, period, check)
    (earlier,) = pack.tables.execute(_EARLIER, (name, first_ms)).fetchone()
    return int(earlier), _verify_later(pack, line, last_ms, check)


def _verify_use_by(pack: Pack, name: str, use_by: date, check: Check) -> None:
    late = pack.tables.execute(_TOO_LATE, (name, end_of_day_ms(use_by))).fetchone()
    check(late is None, f"{name}: {late and late[0]} was subsidised after the voucher's use-by day {use_by}")


def _verify_charge(pack: Pack, name: str, charge: dict[str, Any], period: Period, check: Check) -> None:
    at_ms, where = charge["occurred_at_ms"], f"{name}, transfer {charge['id']}"
    within = period.first_day <= policy_date(at_ms) <= period.last_day
    check(within, f"{where}: charged on {policy_date(at_ms)}, outside {period.first_day} to {period.last_day}")
    used = pack.tables.execute(_LAST_USE, (str(charge["id"]), at_ms)).fetchone()
    check(used is not None, f"{where}: none of its records was used at its instant")


def _verify_later(pack: Pack, line: dict[str, Any], last_ms: int, check: Check) -> int:
    """What was used after the period's last day: less than a fen each, and together less than could have waited."""
    name, count, most = str(line["line"]), 0, MICRO * (1 + _corrections(pack, line))
    for transfer, records in groupby(pack.tables.execute(_LATER, (name, last_ms)), key=lambda record: record[0]):
        standing, wrong = 0, ""
        for _, usage_id, micro, correction in records:
            count += 1
            standing += 0 if correction else micro
            wrong = wrong or (usage_id if micro >= MICRO or standing >= most else "")
        check(not wrong, f"{name}, transfer {transfer}: {wrong} was used after the batch's last day")
    return count


def _corrections(pack: Pack, line: dict[str, Any]) -> int:
    """Those of records under the line's reservation, in this line or another's, as the document says; at least those
    that are here (documents from before they were counted)."""
    (marked,) = pack.tables.execute(_MARKED, (str(line["line"]),)).fetchone()
    here = int(marked) + sum(1 for each in line["transfers"] if each["kind"] == "P13")
    return max(here, int(line.get("corrections", 0)))
