"""Signals in how a voucher is used: machine-like intervals, one request again and again, a burst before the use-by day.

Each is a pure function over typed rows, whatever their order; bounds are inclusive. What each does not prove is in
docs/findings.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import isqrt

from marketplace.findings.found import Drawn, Found, Repeat, Sample, Spacing, bounded, yuan
from marketplace.vouchers.signals import Code, Signals, percent
from serving.metering import MICRO_PER_FEN


def decide_constant(row: Spacing, signals: Signals) -> bool:
    """Enough calls, and the coefficient of variation of their gaps at most the threshold: n·Σg² − (Σg)² ≤ cv²·(Σg)²,
    in integers. Calls that all came in one millisecond have no interval."""
    gaps = row.calls - 1
    if row.calls < signals.interval_calls or row.gaps_ms <= 0:
        return False
    spread = gaps * row.gaps_ms2 - row.gaps_ms**2
    return spread * 10_000**2 <= signals.interval_cv_bp**2 * row.gaps_ms**2


def cv_bp(row: Spacing) -> int:
    """The coefficient of variation in basis points, rounded down."""
    spread = max(0, (row.calls - 1) * row.gaps_ms2 - row.gaps_ms**2)
    return isqrt(spread * 10_000**2 // row.gaps_ms**2)


def find_constant_intervals(rows: Iterable[Spacing], signals: Signals, programme: str) -> list[Found]:
    """One finding per contract and key, with the days on which it was so."""
    found: dict[tuple[str, str], list[Spacing]] = defaultdict(list)
    for row in rows:
        if decide_constant(row, signals):
            found[row.contract.id, row.key].append(row)
    return [_constant(sorted(days, key=lambda row: row.day), programme) for _, days in sorted(found.items())]


def _constant(days: list[Spacing], programme: str) -> Found:
    first, calls = days[0], sum(row.calls for row in days)
    steadiest = min(days, key=lambda row: (cv_bp(row), row.day))
    gap = steadiest.gaps_ms / (steadiest.calls - 1)
    many = "1 day" if len(days) == 1 else f"{len(days)} days"
    return Found(
        code=Code.CONSTANT_INTERVALS,
        severity="low",
        programme=programme,
        organisation=first.contract.organisation,
        provider=first.contract.provider,
        keys=(first.contract.id, first.key),
        contracts=(first.contract.id,),
        amount_fen=sum(row.amount_micro for row in days) // MICRO_PER_FEN,
        zh=f"一个密钥在 {len(days)} 天里共调用 {calls} 次, 间隔几乎不变 (最匀的一天约每 {gap:,.0f} 毫秒一次, "
        f"变异系数 {percent(cv_bp(steadiest))})",
        en=f"one key called {calls} times on {many} at almost constant intervals (on the steadiest about "
        f"every {gap:,.0f} ms, coefficient of variation {percent(cv_bp(steadiest))})",
        evidence={
            "key": first.key,
            "days": [
                {"day": row.day, "calls": row.calls, "mean_gap_ms": row.gaps_ms // (row.calls - 1), "cv_bp": cv_bp(row)}
                for row in bounded(reversed(days))
            ],
            "day_count": len(days),
            "usage_count": calls,
        },
        sample=Sample(first.contract.id, key=first.key, day=steadiest.day),
    )


def decide_repeated(row: Repeat, signals: Signals) -> bool:
    """The same request often enough, by count and as a share of the contract's calls."""
    return row.calls >= signals.identical_calls and row.calls * 10_000 >= signals.identical_share_bp * row.of_calls


def find_identical_requests(rows: Iterable[Repeat], signals: Signals, programme: str) -> list[Found]:
    """One finding per contract, model and request."""
    repeated = [row for row in rows if row.digest and decide_repeated(row, signals)]
    return [_repeated(row, programme) for row in sorted(repeated, key=lambda r: (r.contract.id, r.model, r.digest))]


def _repeated(row: Repeat, programme: str) -> Found:
    share = percent(row.calls * 10_000 // row.of_calls)
    return Found(
        code=Code.IDENTICAL_REQUESTS,
        severity="medium",
        programme=programme,
        organisation=row.contract.organisation,
        provider=row.contract.provider,
        keys=(row.contract.id, row.model, row.digest),
        contracts=(row.contract.id,),
        amount_fen=row.amount_micro // MICRO_PER_FEN,
        zh=f"同一请求向 {row.model} 发了 {row.calls} 次并扣费, 占该合同调用的 {share}",
        en=f"the same request was sent to {row.model} {row.calls} times and charged: {share} of the contract's calls",
        evidence={
            "request_digest": row.digest,
            "model": row.model,
            "usage_count": row.calls,
            "of_calls": row.of_calls,
            "days": [{"day": row.first_day}, {"day": row.last_day}],
        },
        sample=Sample(row.contract.id, model=row.model, digest=row.digest),
    )


def decide_burst(row: Drawn, signals: Signals, today: str) -> bool:
    """Its last days have begun, it could be used for long enough, and they carry enough of what it paid."""
    large = row.late_fen >= signals.burst_fen and row.late_fen * 10_000 >= signals.burst_share_bp * row.paid_fen
    return large and row.valid_days >= signals.burst_valid_days and today >= row.late_from


def find_bursts(rows: Iterable[Drawn], signals: Signals, programme: str, today: str) -> list[Found]:
    """One finding per voucher."""
    bursts = [row for row in rows if decide_burst(row, signals, today)]
    return [_burst(row, programme) for row in sorted(bursts, key=lambda r: r.voucher)]


def _burst(row: Drawn, programme: str) -> Found:
    share = percent(row.late_fen * 10_000 // row.paid_fen)
    return Found(
        code=Code.BURST_BEFORE_USE_BY,
        severity="medium",
        programme=programme,
        organisation=row.organisation,
        provider="",
        keys=(row.voucher,),
        contracts=row.contracts,
        amount_fen=row.late_fen,
        zh=f"该券支付的 {yuan(row.paid_fen)} 元中, {yuan(row.late_fen)} 元 ({share}) 集中在 {row.late_from} 至到期日 "
        f"{row.use_by}",
        en=f"of the {yuan(row.paid_fen)} yuan that the voucher paid, {yuan(row.late_fen)} ({share}) fall between "
        f"{row.late_from} and its use-by day {row.use_by}",
        evidence={
            "voucher": row.voucher,
            "issued_day": row.issued_day,
            "use_by": row.use_by,
            "late_from": row.late_from,
            "paid_fen": row.paid_fen,
            "late_fen": row.late_fen,
            "charges": bounded(row.charges),
            "charge_count": row.charge_count,
        },
    )
