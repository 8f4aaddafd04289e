"""Pictures drawn on the server as SVG: they print, need no script, and the page's policy lets no script in.

Colours come from the stylesheet by class, so that they follow light and dark. Each picture has a title that is read
aloud, and stands beside a table with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 640


@dataclass(frozen=True, slots=True)
class Interval:
    """One model's metric with its 95% interval; `best`: not distinguishable from the first."""

    label: str
    value: float
    low: float
    high: float
    best: bool = False


def intervals(title: str, rows: Sequence[Interval]) -> Markup:
    """Error bars under each other on one scale."""
    if not rows:
        return Markup("")
    step, left, right, top = 34, 250, 70, 8
    first, last = min(row.low for row in rows), max(row.high for row in rows)
    margin = (last - first) * 0.05 or 0.05
    first, last = first - margin, last + margin

    def x(value: float) -> str:
        return f"{left + (value - first) / (last - first) * (WIDTH - left - right):.1f}"

    parts = []
    for number, row in enumerate(rows):
        y = top + step * number + step // 2
        kind = "best" if row.best else "rest"
        label = row.label if len(row.label) <= 34 else row.label[:33] + "…"
        parts.append(
            f'<g class="{kind}"><text x="0" y="{y + 5}">{escape(label)}</text>'
            f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{y}" y2="{y}"/>'
            f'<line class="bar" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"/>'
            f'<line class="bar" x1="{x(row.low)}" x2="{x(row.low)}" y1="{y - 6}" y2="{y + 6}"/>'
            f'<line class="bar" x1="{x(row.high)}" x2="{x(row.high)}" y1="{y - 6}" y2="{y + 6}"/>'
            f'<circle cx="{x(row.value)}" cy="{y}" r="6"/>'
            f'<text class="number" x="{WIDTH}" y="{y + 5}" text-anchor="end">{row.value:.3f}</text></g>'
        )
    return _picture(title, top * 2 + step * len(rows), "".join(parts))


def stacked_bars(title: str, labels: Sequence[str], series: Sequence[Sequence[float]]) -> Markup:
    """One bar for each label, the series on top of each other; series number n has class `s{n}`."""
    totals = [sum(values) for values in zip(*series, strict=True)]
    highest = max(totals, default=0.0)
    if not labels or highest <= 0:
        return Markup("")
    height, floor = 180, 150
    slot = WIDTH / len(labels)
    parts = [f'<line class="rule" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>']
    every = max(1, len(labels) // 8)
    for place, label in enumerate(labels):
        y = float(floor)
        for number, values in enumerate(series):
            tall = values[place] / highest * (floor - 12)
            y -= tall
            if tall > 0:
                parts.append(
                    f'<rect class="s{number}" x="{place * slot + slot * 0.15:.1f}" y="{y:.1f}" '
                    f'width="{slot * 0.7:.1f}" height="{tall:.1f}"/>'
                )
        if place % every == 0:
            middle = f"{max(place * slot + slot / 2, 20):.1f}"
            parts.append(f'<text x="{middle}" y="{floor + 18}" text-anchor="middle">{escape(label)}</text>')
    return _picture(title, height, "".join(parts))


def curve(title: str, points: Sequence[tuple[float, float]]) -> Markup:
    """A line through (x, y); nothing for fewer than two points."""
    if len(points) < 2:
        return Markup("")
    height, left, floor = 190, 56, 160
    xs, ys = [x for x, _ in points], [y for _, y in points]
    wide, tall = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    dots = [
        f"{left + (x - min(xs)) / wide * (WIDTH - left - 8):.1f},{floor - (y - min(ys)) / tall * (floor - 14):.1f}"
        for x, y in points
    ]
    body = (
        f'<line class="rule" x1="{left}" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>'
        f'<text x="0" y="18">{max(ys):.3g}</text><text x="0" y="{floor}">{min(ys):.3g}</text>'
        f'<polyline class="curve" points="{" ".join(dots)}"/>'
    )
    return _picture(title, height, body)


def _picture(title: str, height: int, body: str) -> Markup:
    return Markup(  # noqa: S704 - every text in it is escaped above
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height}"><title>{escape(title)}</title>{body}</svg>'
    )
