"""Time: instants are Unix milliseconds in UTC; policy dates are calendar days in Asia/Shanghai."""

from __future__ import annotations

import time
from datetime import date, datetime
from zoneinfo import ZoneInfo

SHANGHAI = ZoneInfo("Asia/Shanghai")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def instant(ms: int) -> datetime:
    """The Shanghai wall-clock time of an instant, zone attached."""
    return datetime.fromtimestamp(ms / 1000, SHANGHAI)


def policy_date(ms: int) -> date:
    """The Asia/Shanghai calendar day that an instant falls on; use-by and caps are judged on it."""
    return instant(ms).date()


def start_of_day_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=SHANGHAI).timestamp() * 1000)


def end_of_day_ms(day: date) -> int:
    """The last millisecond of a policy day: a use-by day counts in full."""
    return start_of_day_ms(day) + 86_400_000 - 1
