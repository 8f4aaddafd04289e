"""What may be done with a claim in each state, and what comes of it: tables and pure functions.

BATCH     assembling → frozen → submitted → reviewed → public_notice → approved → paying → paid → reconciled
                                    ↘ returned (from submitted, reviewed, public_notice)
LINE      in_batch → accepted | returned | rejected
CORRECTION  proposed → posted | declined
CLAWBACK  opened → confirmed → demanded → recovered | written_off
"""

from __future__ import annotations

from dataclasses import dataclass

from marketplace.usage.rounding import Meter
from model_store.errors import Conflict
from serving.metering import MICRO_PER_FEN

BATCH: dict[tuple[str, str], str] = {
    ("assembling", "freeze"): "frozen",
    ("assembling", "discard"): "discarded",
    ("frozen", "submit"): "submitted",
    ("submitted", "review"): "reviewed",
    ("submitted", "return"): "returned",
    ("reviewed", "publish"): "public_notice",
    ("reviewed", "return"): "returned",
    ("public_notice", "return"): "returned",
    ("public_notice", "approve"): "approved",
    ("approved", "pay"): "paying",
    ("paying", "unpay"): "approved",
    ("paying", "confirm-payment"): "paid",
    ("paid", "reconcile"): "reconciled",
}
LINES_OPEN = ("submitted", "reviewed", "public_notice")  # a single line may be returned or rejected
PAYMENT_STANDS = ("paying", "paid", "reconciled")  # the batch's payment reference is no other batch's
CORRECTION: dict[tuple[str, str], str] = {("proposed", "post"): "posted", ("proposed", "decline"): "declined"}
CLAWBACK: dict[tuple[str, str], str] = {
    ("opened", "confirm"): "confirmed",
    ("opened", "drop"): "dropped",
    ("confirmed", "demand"): "demanded",
    ("demanded", "recover"): "recovered",
    ("demanded", "write-off"): "written_off",
}


def decide_state(table: dict[tuple[str, str], str], state: str, decision: str) -> str:
    """The state after a decision; `Conflict` CLAIM_STATE where it does not apply."""
    after = table.get((state, decision))
    if after is None:
        possible = [each for before, each in table if before == state]
        raise Conflict(
            "CLAIM_STATE",
            zh=f"状态为“{state}”, 不能执行“{decision}”",
            en=f"it is {state} and cannot {decision}",
            remedy_zh=f"当前可执行: {'、'.join(possible) or '无'}",
            remedy_en=f"what can be done now: {', '.join(possible) or 'nothing'}",
            details={"state": state, "possible": possible},
        )
    return after


@dataclass(frozen=True, slots=True)
class Reversal:
    """What a correction takes back, in whole fen, and the meter after it."""

    gross_fen: int
    subsidy_fen: int
    meter: Meter


def decide_reversal(meter: Meter, gross_micro: int, eligible_micro: int, num: int = 0, den: int = 1) -> Reversal:
    """Take usage out of a meter again: the inverse of `marketplace.usage.rounding.accumulate`.

    What stands posted afterwards is never more than the rule allows for what is left: gross ⌊Σ gross / 10⁶⌋, subsidy
    ⌊Σ eligible · num / (den · 10⁶)⌋ and num / den of the gross. `ValueError` where the meter does not hold as much.
    """
    gross_total, eligible_total = meter.gross_micro - gross_micro, meter.eligible_micro - eligible_micro
    if gross_micro < 0 or not 0 <= eligible_micro <= gross_micro or gross_total < eligible_total or eligible_total < 0:
        raise ValueError(f"the meter {meter} does not hold {gross_micro} and {eligible_micro} micro-fen")
    gross = min(meter.posted_gross_fen, gross_total // MICRO_PER_FEN)
    subsidy = min(meter.posted_subsidy_fen, eligible_total * num // (den * MICRO_PER_FEN), gross * num // den)
    after = Meter(gross_total, eligible_total, gross, subsidy)
    return Reversal(meter.posted_gross_fen - gross, meter.posted_subsidy_fen - subsidy, after)
