"""Related parties: the graph of what organisations declare, from which share a programme counts it, and declaring."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from marketplace.db import reading, transaction
from marketplace.organisations import declaring
from marketplace.organisations.tables import AuditEvent, Organisation
from marketplace.organisations.uscc import demo_code
from marketplace.vouchers.relations import MAX_STEPS, Holding, Party, find_relation
from marketplace.vouchers.sale import are_related, relation_between
from model_store.errors import BadInput
from tests.marketplace.shelf import add_organisation
from tests.marketplace.test_claims_desk import desk, town  # noqa: F401
from tests.marketplace.town import programme_file


def party(code: str, /, *holders: tuple[str, int], **facts) -> Party:
    shares = tuple(Holding(f"holder {holder}", holder, share) for holder, share in holders)
    return Party(f"org_{code}", "enterprise", "approved", code, shareholders=shares, **facts)


def between(caller: Party, provider: Party, *others: Party) -> int:
    """The share that relates the two; 0 where nothing does."""
    relation = find_relation(caller, provider, {each.node: each for each in others})
    return relation.share_bp if relation else 0


@pytest.mark.parametrize(
    ("caller", "provider", "others", "share_bp"),
    [
        (party("F"), party("V"), (), 0),
        (party("F", ("V", 3_000)), party("V"), (), 3_000),  # the provider holds the caller
        (party("F"), party("V", ("F", 2_499)), (), 2_499),  # the caller holds the provider
        (party("F", ("P", 6_000)), party("V", ("P", 2_500)), (), 2_500),  # one person holds both
        (party("F", ("P", 6_000)), party("V", ("Q", 2_500)), (), 0),
        (party("F", ("H", 5_000)), party("V"), (party("H", ("V", 4_000)),), 4_000),  # through a firm in between
        (party("F", ("H", 5_000)), party("V", ("I", 3_000)), (party("H", ("P", 9_000)), party("I", ("P", 9_000))),
         3_000),
        (party("F", ("H", 1_000), ("I", 4_000)), party("V"), (party("H", ("V", 9_000)), party("I", ("V", 3_500))),
         3_500),
        (party("F", controllers=frozenset({"P"})), party("V", ("P", 3_000)), (), 3_000),
        (party("F", ("", 9_000)), party("V", ("", 9_000)), (), 0),  # a name alone identifies nobody
        (party("F", ("V", 3_000)), party("V", ("F", 4_000)), (), 4_000),  # a ring ends
    ],
)  # fmt: skip
def test_the_strongest_way_between_two_decides_by_its_weakest_step(caller, provider, others, share_bp):
    assert between(caller, provider, *others) == share_bp
    assert between(provider, caller, *others) == share_bp


def test_the_way_is_told_step_by_step():
    relation = find_relation(party("F", ("H", 5_000)), party("V"), {"H": party("H", ("V", 4_000))})
    assert [(link.held, link.holder, link.share_bp) for link in relation.links] == [
        ("F", "H", 5_000),
        ("H", "V", 4_000),
    ]


def test_a_chain_is_walked_so_far_and_no_further():
    def chain(steps: int) -> int:
        names = ["F", *(f"H{number}" for number in range(steps - 1)), "V"]
        firms = [party(held, (holder, 9_000)) for held, holder in pairwise(names)]
        return between(firms[0], party("V"), *firms)

    assert (chain(MAX_STEPS), chain(MAX_STEPS + 1)) == (9_000, 0)


@given(st.permutations(["P", "Q", "R", "S"]), st.permutations([3_000, 4_000, 1_000, 2_000]))
def test_the_order_in_which_holders_are_declared_changes_nothing(holders, shares):
    stakes = dict(zip(["P", "Q", "R", "S"], [3_000, 4_000, 1_000, 2_000], strict=True))
    caller = party("F", *((holder, stakes[holder]) for holder in holders))
    provider = party(
        "V", *((holder, share) for holder, share in sorted(zip(["P", "Q", "R", "S"], shares, strict=True)))
    )
    same = party("F", *sorted(stakes.items()))
    assert find_relation(caller, provider) == find_relation(same, provider)


@pytest.mark.parametrize(("share_bp", "related"), [(1_999, False), (2_000, True), (2_001, True)])
def test_each_programme_says_from_which_share_on_two_are_related(share_bp, related):
    relation = find_relation(party("F", ("V", share_bp)), party("V"))
    assert programme_file(signals={"related_share_bp": 2_000}).relates(relation) is related
    assert not programme_file(signals={"related_share_bp": 2_500}).relates(relation)
    assert not programme_file().relates(None)


# --- the register -----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(engine):
    """A factory held by a firm in between that the vendor holds, by 30% each."""
    with transaction(engine) as session:
        for number, (slug, kind) in enumerate(
            [("factory", "enterprise"), ("vendor", "vendor"), ("between", "enterprise")]
        ):
            add_organisation(session, slug, kind, uscc=demo_code(number), is_demo=True, status="approved")
    hold(engine, "org_factory", demo_code(2))
    hold(engine, "org_between", demo_code(1))
    return engine


def hold(engine, held: str, code: str, share_bp: int = 3_000) -> None:
    with transaction(engine) as session:
        row = session.get_one(Organisation, held)
        row.shareholders = [{"name": "x", "code": code, "share_bp": share_bp}]
        session.add(row)


def test_a_firm_in_between_that_is_registered_relates_the_two_at_its_ends(three):
    with reading(three) as session:
        assert relation_between(session, "org_factory", "org_vendor").share_bp == 3_000
        assert are_related(session, "org_vendor", "org_factory")
    hold(three, "org_between", demo_code(1), 2_499)
    with reading(three) as session:
        assert not are_related(session, "org_factory", "org_vendor")


def test_what_nobody_has_approved_relates_nobody(three):
    with transaction(three) as session:
        row = session.get_one(Organisation, "org_between")
        row.status = "pending"
        session.add(row)
    with reading(three) as session:
        assert relation_between(session, "org_factory", "org_vendor") is None


# --- declaring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("东莞某投资公司 | 914403001922038216 | 30%", [("东莞某投资公司", "914403001922038216", 3_000)]),
        ("陈大文 | 12.5%\n\n李 | p-1", [("陈大文", "", 1_250), ("李", "p-1", 0)]),
        ("某公司\uff5c 9144030019 22038216 \uff5c 30\uff05", [("某公司", "914403001922038216", 3_000)]),
    ],
)
def test_shareholders_are_read_line_by_line_and_written_back(text, found):
    rows = declaring.shareholders_of(text)
    assert [(row["name"], row["code"], row["share_bp"]) for row in rows] == found
    assert declaring.shareholders_of(declaring.lines_of(rows)) == rows


@pytest.mark.parametrize(
    "text",
    ["甲 | 101%", "甲 | 60%\n乙 | 41%", "| 10%", "甲 | x%", "甲 | -1%", "甲 | nan%", "甲 | inf%", "甲 | 1%\n" * 51],
)
def test_shares_that_cannot_be_are_refused(text):
    with pytest.raises(BadInput, match="SHAREHOLDERS_INVALID"):
        declaring.shareholders_of(text)


def test_an_owner_declares_on_the_page_and_a_voucher_pays_no_more_between_the_two(town, desk):  # noqa: F811
    assert "申报信息" in desk.see("wang", "/console/members")
    fields = {"organisation_id": "org_factory", "legal_person": "王", "address": "莞城 1 号", "phone": "0769-1"}
    desk.press("wang", "declare", **fields, shareholders=f"某供应商 | {demo_code(0)} | 30%")
    seen = desk.see("wang", "/console/members", "en")
    assert f"某供应商 | {demo_code(0)} | 30%" in seen
    assert "declared" in desk.see("chen", "/city/organisations", "en")
    with reading(town.engine) as session:
        assert are_related(session, "org_factory", "org_vendor")
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "organisation.declare")).one()
    assert event.details["shareholders"][0]["share_bp"] == 3_000
    desk.press("wang", "declare", status=404, organisation_id="org_vendor", legal_person="王")
    desk.press("chen", "declare", organisation_id="org_factory")  # an operator puts it right
    with reading(town.engine) as session:
        assert not are_related(session, "org_factory", "org_vendor")
