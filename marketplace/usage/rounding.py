"""From micro-fen to fen: cumulative rounding per reservation, and which leases a subsidy is drawn from. Pure integers.

The rule and the two sequences that broke an earlier one are in ../shared/design/vouchers.md, "Rounding".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.metering import MICRO_PER_FEN


@dataclass(frozen=True, slots=True)
class Meter:
    """All that was ever used and posted under one reservation (or, without a voucher, one subscription)."""

    gross_micro: int = 0
    eligible_micro: int = 0
    posted_gross_fen: int = 0
    posted_subsidy_fen: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What to post now (`gross_fen` 0: nothing yet), and the meter after it."""

    gross_fen: int
    subsidy_fen: int
    meter: Meter


def accumulate(meter: Meter, gross_micro: int, eligible_micro: int, num: int = 0, den: int = 1) -> Charge:
    """Add usage and cut off the whole fen.

    gross = ⌊Σ gross / 10⁶⌋ - posted. The subsidy follows ⌊Σ eligible · num / (den · 10⁶)⌋, but is never more than
    num / den of the gross posted so far, nor than the gross posted with it: a fen of subsidy waits for the gross fen
    that carries it. So the ratio holds at every instant, and no charge has a subsidy without gross.
    """
    gross_total = meter.gross_micro + gross_micro
    eligible_total = meter.eligible_micro + eligible_micro
    gross_fen = gross_total // MICRO_PER_FEN - meter.posted_gross_fen
    posted_gross = meter.posted_gross_fen + gross_fen
    due = min(eligible_total * num // (den * MICRO_PER_FEN), posted_gross * num // den)
    subsidy = max(0, min(due - meter.posted_subsidy_fen, gross_fen))
    return Charge(
        gross_fen, subsidy, Meter(gross_total, eligible_total, posted_gross, meter.posted_subsidy_fen + subsidy)
    )


def decide_draws(balances: Sequence[tuple[str, int]], fen: int) -> dict[str, int]:
    """Take `fen` out of leases in the order given: {lease: fen}. `ValueError` where they do not hold as much."""
    draws: dict[str, int] = {}
    for lease, held in balances:
        if fen and held > 0:
            draws[lease] = min(held, fen)
            fen -= draws[lease]
    if fen:
        raise ValueError(f"the leases lack {fen} fen of what was used under them")
    return draws


def is_covered(eligible_micro: int, amount_micro: int, num: int, den: int, granted_fen: int) -> bool:
    """The node's own rule, asked again: (used + amount) · num <= granted · den."""
    return (eligible_micro + amount_micro) * num <= granted_fen * MICRO_PER_FEN * den
