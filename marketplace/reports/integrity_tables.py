"""The report on what proves the ledger: closed days, the journal segments under each root, sealed journals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sqlmodel import col, select

from marketplace.clock import policy_date
from marketplace.integrity.days import key_of
from marketplace.integrity.tables import DayRoot, JournalSegment
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts


def _integrity(facts: Facts) -> Iterator[Row]:
    """Each closed day's root and chain with the segments that are leaves under it, segments that no closed day covers
    (yet), then each sealed journal with its SHA-256."""
    segments = _segments(facts)
    query = select(DayRoot).where(col(DayRoot.closed_at_ms) <= facts.as_of_ms).order_by(col(DayRoot.day))
    for day in facts.session.exec(query):
        yield ("day", day.day, day.day, day.layout, day.transfers, day.segments, "", None, "", None, None, None, None,
               day.root, day.chain, day.closed_at_ms, None)  # fmt: skip
        if day.layout >= 2:  # before, no segment was a leaf
            for row in segments.pop(day.day, ()):
                yield _segment(day.day, row)
    for _, uncovered in sorted(segments.items()):
        for row in uncovered:
            yield _segment("", row)
    for event in facts.events("epoch.seal"):
        node, _, epoch = event.subject.rpartition("-")
        yield ("journal", event.subject, "", None, None, None, node, int(epoch), "", None, None, None, None,
               event.details.get("sha256", ""), "", event.at_ms, bool(event.details.get("torn")))  # fmt: skip


def _segments(facts: Facts) -> dict[str, list[JournalSegment]]:
    """Day on which they were recorded (ISO, Asia/Shanghai) → segments by then, in the order of the day's leaves.

    A few a day and node: they are held at once.
    """
    found: dict[str, list[JournalSegment]] = defaultdict(list)
    query = select(JournalSegment).where(col(JournalSegment.recorded_at_ms) <= facts.as_of_ms)
    for row in sorted(facts.session.exec(query), key=key_of):  # not by the database: collations differ
        found[policy_date(row.recorded_at_ms).isoformat()].append(row)
    return found


def _segment(day: str, row: JournalSegment) -> Row:
    return ("segment", f"{row.node}-{row.epoch}", day, None, None, None, row.node, row.epoch, row.kind, row.bytes,
            row.first_seq, row.last_seq, row.count, row.sha256, "", row.recorded_at_ms, None)  # fmt: skip


INTEGRITY = Report(
    "integrity",
    "完整性: 日根、日志分段与日志封存",
    "Integrity: day roots, journal segments and sealed journals",
    columns("""
kind text 类别 | kind
of text 日期或节点纪元 | day, or node and epoch
day text 所属日根 | day whose root covers it
layout integer 布局版本 | layout version
transfers integer 入账笔数 | transfers
segments integer 分段数 | segments
node text 节点 | node
epoch integer 纪元 | epoch
segment text 分段类别 (sealed 已封存, prefix 未封存) | kind of segment (sealed, or the prefix of an open journal)
bytes integer 字节数 | bytes
first_seq integer 首序号 | first sequence number
last_seq integer 末序号 | last sequence number
records integer 记录数 | records
sha256 text 根或摘要 | root or hash
chain text 链 | chain
at instant 时间 | at
torn flag 断尾 | torn tail
"""),
    _integrity,
)
