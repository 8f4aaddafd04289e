"""Organisations, the people in them, and 统一社会信用代码."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import Session, select

from marketplace.db import transaction
from marketplace.keys.authentication import find_session
from marketplace.organisations import members
from marketplace.organisations.registration import decide_organisation, decide_standing, register_organisation
from marketplace.organisations.tables import AuditEvent, Member, Notice, Organisation
from marketplace.organisations.uscc import ALPHABET, check_character, check_uscc, demo_code, is_demo, is_valid
from model_store.errors import BadInput, Conflict, Refusal, TooMany, Unauthenticated

# Published in the national enterprise credit information system.
REAL_CODES = ["914403001922038216", "9144030071526726XG", "91330100799655058B", "91440300708461136T"]
NOW = 1_800_000_000_000


def register(session: Session, number: int = 1, **changes: object) -> tuple[Organisation, Member]:
    facts: dict[str, object] = {
        "kind": "enterprise",
        "name_zh": "东莞某轴承厂",
        "slug": f"bearing-works-{number}",
        "uscc": demo_code(number),
        "email": f"owner{number}@example.com",
        "member_name": "王工",
        "password": "a long sentence",
    }
    return register_organisation(session, **(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", REAL_CODES)
def test_a_real_published_code_is_valid(code):
    assert is_valid(code)
    assert check_uscc(f" {code[:6]} {code[6:].lower()} ") == code


@given(st.sampled_from(REAL_CODES), st.integers(0, 17), st.sampled_from(ALPHABET))
def test_any_single_wrong_character_is_found(code, place, character):
    wrong = code[:place] + character + code[place + 1 :]
    assert is_valid(wrong) == (wrong == code)


@given(st.integers(0, 99_999))
def test_a_demonstration_code_is_well_formed_and_says_that_it_is_one(number):
    code = demo_code(number)
    assert is_valid(code)
    assert is_demo(code)
    assert not any(is_demo(real) for real in REAL_CODES)


@given(st.text(alphabet=ALPHABET, min_size=17, max_size=17))
def test_the_check_character_is_in_the_alphabet_for_every_body(body):
    assert check_character(body) in ALPHABET


def test_a_wrong_check_character_is_refused_with_the_reason(engine):
    with pytest.raises(BadInput) as refusal:
        check_uscc("914403001922038217")
    assert refusal.value.code == "USCC_INVALID"
    assert "校验位" in refusal.value.zh
    assert refusal.value.remedy_zh


def test_a_registration_waits_for_approval_and_tells_the_operator(engine):
    with transaction(engine) as session:
        session.add(Organisation(id="org_op", kind="operator", name_zh="运营", status="approved"))
        organisation, owner = register(session)
        assert (organisation.status, owner.role) == ("pending", "owner")
        assert session.exec(select(Notice.code).where(Notice.organisation_id == "org_op")).all() == [
            "ORGANISATION_PENDING"
        ]
        decide_organisation(session, organisation.id, "approve", actor="mem_op")
        assert organisation.status == "approved"
        actions = session.exec(select(AuditEvent.action).where(AuditEvent.subject == organisation.id)).all()
        assert set(actions) == {"organisation.register", "organisation.approve"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"uscc": None}, "USCC_REQUIRED"),
        ({"kind": "operator"}, "KIND_INVALID"),
        ({"slug": "models"}, "NAME_RESERVED"),
        ({"slug": "two--hyphens"}, "NAME_INVALID"),
        ({"email": "nowhere"}, "EMAIL_INVALID"),
        ({"password": "short"}, "PASSWORD_WEAK"),
        ({"password": "aaaaaaaaaaaaaaaa"}, "PASSWORD_WEAK"),
        ({"name_zh": "  "}, "TEXT_INVALID"),
    ],
)
def test_a_registration_that_breaks_a_rule_is_refused_by_field(engine, changes, code):
    with pytest.raises(BadInput) as refusal, transaction(engine) as session:
        register(session, **changes)
    assert refusal.value.code == code
    assert refusal.value.field


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"uscc": demo_code(2), "email": "b@example.com"}, "SLUG_TAKEN"),
        ({"slug": "other", "email": "b@example.com"}, "USCC_TAKEN"),
        ({"slug": "other", "uscc": demo_code(2)}, "EMAIL_TAKEN"),
    ],
)
def test_what_is_taken_cannot_be_registered_again(engine, changes, code):
    with transaction(engine) as session:
        register(session)
    with pytest.raises(Conflict) as refusal, transaction(engine) as session:
        register(session, **changes)
    assert refusal.value.code == code


def test_only_an_approved_organisation_can_be_suspended():
    assert decide_standing("approved", "suspend") == "suspended"
    assert decide_standing("suspended", "approve") == "approved"
    for status in ("pending", "rejected", "suspended"):
        with pytest.raises(Conflict):
            decide_standing(status, "suspend")


def test_an_invitation_is_good_once_and_for_seven_days(engine):
    with transaction(engine) as session:
        organisation, owner = register(session)
        facts = {"organisation_id": organisation.id, "name": "李工", "role": "member", "actor": owner.id, "at_ms": NOW}
        _, token = members.invite_member(session, email="li@example.com", **facts)
        _, late = members.invite_member(session, email="zhao@example.com", **facts)
    with transaction(engine) as session:
        member = members.redeem_token(session, token, "invitation", "another sentence", NOW + 1)
        assert (member.status, member.email) == ("active", "li@example.com")
    for spent, at_ms in ((token, NOW + 2), (late, NOW + members.INVITATION_LIFE_MS), ("guess", NOW)):
        with pytest.raises(BadInput) as refusal, transaction(engine) as session:
            members.redeem_token(session, spent, "invitation", "another sentence", at_ms)
        assert refusal.value.code == "TOKEN_INVALID"


def test_a_password_reset_ends_sessions_and_an_older_reset_link(engine):
    with transaction(engine) as session:
        _, owner = register(session)
        _, cookie = members.login(session, owner.email, "a long sentence", NOW)
        first = members.issue_token(session, owner, "reset", NOW)
        second = members.issue_token(session, owner, "reset", NOW + 1)
    with pytest.raises(BadInput), transaction(engine) as session:
        members.redeem_token(session, first, "reset", "a new sentence", NOW + 2)
    with transaction(engine) as session:
        assert find_session(session, cookie, NOW + 2) is not None
        members.redeem_token(session, second, "reset", "a new sentence", NOW + 2)
        assert find_session(session, cookie, NOW + 3) is None
    with pytest.raises(Unauthenticated), transaction(engine) as session:
        members.login(session, owner.email, "a long sentence", NOW + 4)
    with transaction(engine) as session:
        members.login(session, owner.email, "a new sentence", NOW + 5)


def test_a_forgotten_password_tells_the_owners_and_nobody_else(engine):
    with transaction(engine) as session:
        organisation, owner = register(session)
        members.forgot_password(session, "stranger@example.com", NOW)
        members.forgot_password(session, owner.email.upper(), NOW)
    with transaction(engine) as session:
        rows = session.exec(select(Notice).where(Notice.code == "PASSWORD_RESET_ASKED")).all()
        assert [row.organisation_id for row in rows] == [organisation.id]


def test_guessing_a_password_is_throttled(engine):
    with transaction(engine) as session:
        _, owner = register(session, number=77)
    refusals: list[Refusal] = []
    for _ in range(11):
        with pytest.raises(Refusal) as refusal, transaction(engine) as session:
            members.login(session, owner.email, "not the password", NOW)
        refusals.append(refusal.value)
    assert {type(r) for r in refusals[:10]} == {Unauthenticated}
    assert isinstance(refusals[10], TooMany)
    assert refusals[10].retry_after_s == 900


def test_the_last_owner_cannot_be_disabled(engine):
    with transaction(engine) as session:
        _, owner = register(session)
    with pytest.raises(Conflict) as refusal, transaction(engine) as session:
        members.disable_member(session, owner, actor=owner.id)
    assert refusal.value.code == "LAST_OWNER"
