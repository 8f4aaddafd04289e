"""API keys: bounded scopes, rotation with an overlap, revocation."""

import pytest
from sqlmodel import select

from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.keys import service
from marketplace.keys.authentication import find_key
from marketplace.keys.principals import authenticate
from marketplace.organisations.tables import AuditEvent, Member, Organisation
from model_store.errors import BadInput, Forbidden, Unauthenticated
from serving.ports import NO_LIMITS, KeyLimits

NOW = 1_800_000_000_000


@pytest.fixture
def factory(engine):
    with transaction(engine) as session:
        organisation = Organisation(id="org_f", kind="enterprise", name_zh="厂", slug="factory", status="approved")
        session.add(organisation)
        session.flush()
        session.add(Member(id="mem_f", organisation_id="org_f", email="f@example.com", name="王工", role="owner"))
    return organisation


def create(session, factory, **changes):
    facts = {"name": "line 1", "scopes": ["use"], "actor": "mem_f", "member_id": "mem_f", "at_ms": NOW}
    return service.create_key(session, factory, **(facts | changes))


def test_a_key_has_256_bits_and_only_its_hash_is_kept(engine, factory):
    with transaction(engine) as session:
        key, secret = create(session, factory)
    assert secret.startswith("am_")
    assert len(secret) == 3 + 43
    stored = " ".join(str(value) for value in key.model_dump().values())
    assert secret not in stored
    assert key.prefix == secret[:8]
    with transaction(engine) as session:
        credential = find_key(session, secret, NOW)
        assert credential.organisation.id == "org_f"
        assert credential.scopes == {"use"}


@pytest.mark.parametrize("token", ["", "am_", "am_wrong", "Bearer x", "am_" + "x" * 100_000, "am_\ud800"])
def test_an_unknown_key_is_refused(engine, factory, token):
    with pytest.raises(Unauthenticated) as refusal, transaction(engine) as session:
        find_key(session, token, NOW)
    assert refusal.value.code == "KEY_INVALID"


def test_a_revoked_key_is_refused_and_revoking_twice_is_harmless(engine, factory):
    with transaction(engine) as session:
        key, secret = create(session, factory)
        service.revoke_key(session, key, actor="mem_f", at_ms=NOW + 1)
        service.revoke_key(session, key, actor="mem_f", at_ms=NOW + 9)
        assert key.revoked_at_ms == NOW + 1
        assert session.exec(select(AuditEvent.action)).all().count("key.revoke") == 1
    with pytest.raises(Unauthenticated) as refusal, transaction(engine) as session:
        find_key(session, secret, NOW + 2)
    assert refusal.value.code == "KEY_REVOKED"


def test_a_rotated_key_works_until_its_overlap_is_over(engine, factory):
    with transaction(engine) as session:
        key, old = create(session, factory)
        successor, new = service.rotate_key(session, key, overlap_ms=1000, actor="mem_f", at_ms=NOW)
        assert (successor.name, successor.scopes) == (key.name, key.scopes)
        find_key(session, old, NOW + 999)
        find_key(session, new, NOW + 999)
    with pytest.raises(Unauthenticated) as refusal, transaction(engine) as session:
        find_key(session, old, NOW + 1000)
    assert refusal.value.code == "KEY_EXPIRED"


def test_rotation_never_lengthens_a_key_that_expires(engine, factory):
    with transaction(engine) as session:
        key, _ = create(session, factory, expires_at_ms=NOW + 500)
        successor, _ = service.rotate_key(session, key, overlap_ms=1000, actor="mem_f", at_ms=NOW)
        assert key.expires_at_ms == successor.expires_at_ms == NOW + 500


@pytest.mark.parametrize("scopes", [[], ["admin"], ["use", "everything"]])
def test_a_factory_cannot_have_scopes_that_its_kind_has_not(engine, factory, scopes):
    with pytest.raises(BadInput) as refusal, transaction(engine) as session:
        create(session, factory, scopes=scopes)
    assert refusal.value.code == "SCOPE_INVALID"


def test_a_narrow_key_cannot_make_or_rotate_its_way_into_a_wide_one(engine, factory):
    narrow = frozenset({"use"})
    with transaction(engine) as session:
        wide, _ = create(session, factory, scopes=["use", "publish"])
    with pytest.raises(Forbidden), transaction(engine) as session:
        create(session, factory, scopes=["publish"], within=narrow)
    with pytest.raises(Forbidden), transaction(engine) as session:
        service.rotate_key(session, wide, overlap_ms=0, actor="mem_f", at_ms=NOW, within=narrow)


def test_a_disabled_member_takes_their_keys_with_them(engine, factory):
    with transaction(engine) as session:
        _, secret = create(session, factory)
        member = session.get_one(Member, "mem_f")
        member.status = "disabled"
    with pytest.raises(Unauthenticated), transaction(engine) as session:
        find_key(session, secret, NOW)


def test_limits_reach_the_node_and_a_successor_and_are_bounded(engine, factory):
    limits = KeyLimits(rate_per_s=20, burst=40, concurrency=4)
    with transaction(engine) as session:
        key, secret = create(session, factory, limits=limits)
        _, new = service.rotate_key(session, key, overlap_ms=60_000, actor="mem_f", at_ms=now_ms())
    assert authenticate(engine, secret).limits == authenticate(engine, new).limits == limits
    with transaction(engine) as session:
        service.limit_key(session, service.get_key(session, key.id, "org_f"), NO_LIMITS, actor="mem_f")
        assert "key.limit" in session.exec(select(AuditEvent.action)).all()
    assert authenticate(engine, secret).limits == NO_LIMITS
    for wrong in (KeyLimits(rate_per_s=-1), KeyLimits(concurrency=service.MAX_LIMIT + 1)):
        with pytest.raises(BadInput) as refusal, transaction(engine) as session:
            create(session, factory, limits=wrong)
        assert refusal.value.code == "LIMIT_INVALID"
