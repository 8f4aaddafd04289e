"""The words of reports' refusals."""

from __future__ import annotations

from model_store.errors import BadInput, Conflict, NotFound


def report_not_found(name: str) -> NotFound:
    return NotFound(
        "REPORT_NOT_FOUND",
        zh=f"没有报表“{name[:60]}”",
        en=f"there is no report {name[:60]!r}",
        remedy_zh="清单见 GET /api/v1/reports",
        remedy_en="GET /api/v1/reports lists them",
    )


def as_of_invalid() -> BadInput:
    return BadInput(
        "AS_OF_INVALID",
        zh="as_of 须为日期, 或带时区的时刻",
        en="as_of is a day, or an instant with its zone",
        remedy_zh="例如 2026-10-01 (当日结束, 北京时间) 或 2026-10-01T12:00:00+08:00",
        remedy_en="such as 2026-10-01 (its end in Asia/Shanghai) or 2026-10-01T12:00:00+08:00",
        field="as_of",
    )


def as_of_too_late(settle_s: int) -> BadInput:
    return BadInput(
        "AS_OF_TOO_LATE",
        zh=f"as_of 须早于现在至少 {settle_s} 秒",
        en=f"as_of is at least {settle_s} seconds ago",
        remedy_zh="请稍候, 或选更早的时刻: 此前的入账都已提交, 报表才不会再变",
        remedy_en="wait, or choose an earlier instant: only what has been committed by then never changes",
        field="as_of",
    )


def from_invalid() -> BadInput:
    return BadInput(
        "REPORT_PERIOD",
        zh="from_day 须为不晚于 as_of 的日期",
        en="from_day is a day that is not after as_of",
        remedy_zh="请填写形如 2026-10-01 的日期",
        remedy_en="give a day such as 2026-10-01",
        field="from_day",
    )


def too_long(rows: int) -> Conflict:
    return Conflict(
        "REPORT_TOO_LONG",
        zh=f"该报表超过 {rows} 行, 不能导出为 XLSX",
        en=f"the report has more than {rows} rows, too many for XLSX",
        remedy_zh="请导出 CSV 或 JSON, 或用 from_day 缩短期间",
        remedy_en="take it as CSV or JSON, or shorten the period with from_day",
        field="format",
    )
