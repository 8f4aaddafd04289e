"""What is left out of a claim, and why: a table of facts, each with the one reason that is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from marketplace.claims.decisions import ClaimDecision, ClaimFacts, LeftOut, decide_claim
from marketplace.claims.refusals import LEFT_OUT
from tests.marketplace.town import programme_file

DAY = date(2027, 2, 1)
PROGRAMME = programme_file(min_spend_fen=30, signals={"hold_claims_on": ["IDENTICAL_REQUESTS"]})
GOOD = ClaimFacts(
    units=[(20, 6), (17, 6)], related=False, redeem_by=DAY, settled_fen=37, findings=(), other_room_fen=None,
    used_fen=12, invoice_room_fen=None,
)  # fmt: skip
# each by itself, in the order in which they are told
WRONG = {
    LeftOut.NOTHING_TO_CLAIM: {"units": [(20, 6), (-1, -6)]},
    LeftOut.RELATED_PARTY: {"related": True},
    LeftOut.REDEEM_BY_OVER: {"redeem_by": date(2027, 1, 31)},
    LeftOut.SPEND_TOO_SMALL: {"settled_fen": 29},
    LeftOut.FINDING_OPEN: {"findings": {"IDENTICAL_REQUESTS", "CONSTANT_INTERVALS"}},
    LeftOut.OTHER_SUBSIDY: {"other_room_fen": 5},
    LeftOut.CORRECTION_OUTSIDE: {"used_fen": 11},
    LeftOut.INVOICE_MISSING: {"invoice_room_fen": 36},
}


@pytest.mark.parametrize("reason", LeftOut)
def test_each_reason_is_told_by_itself_and_before_all_that_come_after_it(reason):
    order = list(LeftOut)
    assert decide_claim(PROGRAMME, replace(GOOD, **WRONG[reason]), DAY).reason == reason
    later = {name: value for each in reversed(order[order.index(reason) :]) for name, value in WRONG[each].items()}
    assert decide_claim(PROGRAMME, replace(GOOD, **later), DAY).reason == reason


@pytest.mark.parametrize(
    ("facts", "count"),
    [
        ({}, 2),
        ({"redeem_by": None}, 2),
        ({"settled_fen": 30}, 2),
        ({"findings": {"CONSTANT_INTERVALS"}}, 2),  # the programme does not hold for those
        ({"other_room_fen": 12}, 2),
        ({"other_room_fen": 11}, 1),
        ({"other_room_fen": 6, "used_fen": 6, "invoice_room_fen": 20}, 1),  # judged by what is left after others
        ({"units": [(20, 6), (17, 6), (0, -3)], "other_room_fen": 9}, 3),
        ({"invoice_room_fen": 37}, 2),
        ({"used_fen": 13}, 2),
    ],
)
def test_what_may_be_claimed_is_told_by_how_many_charges(facts, count):
    assert decide_claim(PROGRAMME, replace(GOOD, **facts), DAY) == ClaimDecision(count)


def test_where_the_programme_allows_related_parties_they_may_claim():
    allowed = programme_file(related_party_policy="allow")
    assert decide_claim(allowed, replace(GOOD, related=True), DAY).reason is None


def test_every_reason_has_words_in_both_languages():
    assert set(LEFT_OUT) == set(LeftOut)
    assert all(zh and en for zh, en in LEFT_OUT.values())
