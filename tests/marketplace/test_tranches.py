"""A tranche that waits for its own approval: two persons release it, and nothing is issued from it before."""

import threading

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from marketplace.clock import now_ms
from marketplace.db import open_database, reading, transaction
from marketplace.migrations.upgrade import differences, upgrade
from marketplace.organisations.tables import AuditEvent, Organisation
from marketplace.vouchers import applications, closing, issuing, tranche_approvals
from marketplace.vouchers.rollout import get_programme, load_programme, set_programme_state
from marketplace.vouchers.tables import Programme, TrancheApproval, Voucher
from model_store.blobs import FolderBlobs
from model_store.errors import BadInput, Conflict, Forbidden, NotFound
from tests.marketplace.stores import on_both_stores
from tests.marketplace.test_programme_versions import authorised, decided, migrate, next_version
from tests.marketplace.test_reports import instant, report
from tests.marketplace.town import CHEN, DAY, LIN, Town, programme_file

PARTS = [{"code": "one", "fen": 300_000}, {"code": "two", "fen": 700_000, "own_approval": True}]


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc)


@pytest.fixture
def began() -> int:
    """Today: audit events are stamped by the machine's own clock."""
    return now_ms()


def propose(town, programme, tranche="two", member=CHEN):
    with transaction(town.engine) as session:
        return tranche_approvals.propose(session, programme, tranche, member=member).id


def approve(town, programme, tranche="two", member=LIN):
    with transaction(town.engine) as session:
        tranche_approvals.approve(session, programme, tranche, member=member, at_ms=town.now)


def release(town, programme, tranche="two"):
    propose(town, programme, tranche)
    approve(town, programme, tranche)


def drop(town, decision, programme, member, note="", tranche="two"):
    with transaction(town.engine) as session:
        getattr(tranche_approvals, decision)(session, programme, tranche, note, member=member, at_ms=town.now)


def states(town, programme):
    with reading(town.engine) as session:
        views = tranche_approvals.tranche_views(session, get_programme(session, programme))
        return {view["tranche"]: view["state"] for view in views}


def pool_of(town, programme):
    with reading(town.engine) as session:
        return issuing.pool_position(session, get_programme(session, programme))


def test_a_tranche_that_waits_is_not_authorised_with_its_programme_and_pays_only_once_two_persons_approved_it(town):
    programme = town.programme(tranches=PARTS)
    assert (authorised(town), states(town, programme)) == (300_000, {"one": "approved", "two": "waits"})
    first = town.voucher(200_000, programme)
    assert town.get(Voucher, first).tranche == "one"
    pool = pool_of(town, programme)
    assert (pool["waiting"], pool["waiting_fen"], pool["unissued_fen"]) == (["two"], 700_000, 100_000)
    release(town, programme)
    assert (authorised(town), states(town, programme)) == (1_000_000, {"one": "approved", "two": "approved"})
    assert (pool_of(town, programme)["waiting"], pool_of(town, programme)["waiting_fen"]) == ([], 0)
    assert town.get(Voucher, town.voucher(250_000, programme)).tranche == "two"
    town.check()


def proposed_voucher(town, programme, fen):
    """Proposed while there was enough in the first tranche."""
    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_factory")
        row = applications.create_application(session, owner, programme, requested_fen=fen, actor="f")
        applications.submit(session, row, actor="f")
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        applications.decide(session, row, "approve", actor=CHEN, at_ms=town.now)
        applications.publish(session, row, actor=CHEN, at_ms=town.now)
        applications.confirm(session, row, actor=CHEN, at_ms=town.now)
        return issuing.propose(session, row, fen, member=CHEN, at_ms=town.now).id


def issue(town, voucher):
    with transaction(town.engine) as session:
        return issuing.approve(session, issuing.get_voucher(session, voucher), member=LIN, at_ms=town.now).tranche


def test_issuing_is_refused_with_the_tranche_that_it_waits_for_and_others_go_on(town):
    programme = town.programme(tranches=PARTS)
    large, small = proposed_voucher(town, programme, 200_000), proposed_voucher(town, programme, 100_000)
    town.voucher(150_000, programme)
    with pytest.raises(Conflict) as refused:
        issue(town, large)
    assert (refused.value.code, refused.value.details) == ("TRANCHE_WAITS", {"tranches": ["two"]})
    assert "two" in refused.value.remedy_zh
    assert "wait until tranche two is approved" in refused.value.remedy_en
    assert issue(town, small) == "one"
    release(town, programme)
    assert issue(town, large) == "two"
    town.check()


def test_a_waiting_tranche_before_others_in_the_file_is_passed_over(town):
    programme = town.programme(tranches=[PARTS[1], PARTS[0]])
    assert town.get(Voucher, town.voucher(200_000, programme)).tranche == "one"
    release(town, programme)
    assert town.get(Voucher, town.voucher(50_000, programme)).tranche == "two"
    town.check()


def test_what_no_tranche_could_pay_is_refused_as_before(town):
    """100,000 are left in the first, and the other one could pay 100 at most: waiting would not help."""
    programme = town.programme(tranches=[PARTS[0], PARTS[1] | {"fen": 100}])
    large = proposed_voucher(town, programme, 150_000)
    town.voucher(200_000, programme)
    with pytest.raises(Conflict) as refused:
        issue(town, large)
    assert refused.value.code == "POOL_EXHAUSTED"


def test_an_application_for_what_only_a_waiting_tranche_has_fails_its_check_with_that_reason(town):
    programme = town.programme(tranches=PARTS)
    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_factory")
        row = applications.create_application(session, owner, programme, requested_fen=400_000, actor="f")
        applications.submit(session, row, actor="f")
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        failed = [(each["code"], each["reason"]) for each in row.checks if not each["passed"]]
        assert failed == [("pool", "TRANCHE_WAITS")]
        application = row.id
    release(town, programme)
    with transaction(town.engine) as session:
        row = applications.get_application(session, application, None)
        applications.check(session, row, actor=CHEN, at_ms=town.now)
        assert all(each["passed"] for each in row.checks)


def test_one_person_does_not_approve_a_tranche_and_each_step_is_in_the_audit_log(town):
    programme = town.programme(tranches=PARTS)
    with pytest.raises(Conflict) as none:
        approve(town, programme)
    assert none.value.code == "TRANCHE_STATE"
    propose(town, programme)
    with pytest.raises(Conflict) as twice:
        propose(town, programme, member=LIN)
    assert twice.value.code == "TRANCHE_STATE"
    for refuse, code in (
        (lambda: approve(town, programme, member=CHEN), "TWO_PERSONS"),
        (lambda: drop(town, "decline", programme, CHEN, "no"), "TWO_PERSONS"),
        (lambda: drop(town, "withdraw", programme, LIN), "PROPOSER_ONLY"),
        (lambda: approve(town, programme, member=""), "PERSON_REQUIRED"),
    ):
        with pytest.raises(Forbidden) as refused:
            refuse()
        assert refused.value.code == code
    with pytest.raises(BadInput):
        drop(town, "decline", programme, LIN, " ")
    drop(town, "decline", programme, LIN, "资金未到位")
    assert (authorised(town), states(town, programme)["two"]) == (300_000, "waits")
    propose(town, programme)
    drop(town, "withdraw", programme, CHEN)
    release(town, programme)
    with pytest.raises(Conflict) as over:
        propose(town, programme)
    assert over.value.code == "TRANCHE_STATE"
    with reading(town.engine) as session:
        query = select(AuditEvent).where(AuditEvent.subject == programme).order_by(AuditEvent.at_ms, AuditEvent.id)
        found = [event for event in session.exec(query) if event.action.endswith("_tranche")]
        steps = [event.action.removeprefix("programme.").removesuffix("_tranche") for event in found]
        assert sorted(steps) == sorted(["propose", "decline", "propose", "withdraw", "propose", "approve"])
        (approval,) = (event for event in found if event.action == "programme.approve_tranche")
        assert (approval.actor, approval.details) == (LIN, {
            "code": "town", "tranche": "two", "fen": 700_000, "proposed_by": CHEN, "authorised_fen": 700_000,
        })  # fmt: skip
        (declined,) = (event for event in found if event.action == "programme.decline_tranche")
        assert declined.details["note"] == "资金未到位"


def test_only_a_tranche_that_waits_in_a_programme_that_runs_is_approved(town):
    with transaction(town.engine) as session:
        draft = load_programme(session, programme_file(tranches=PARTS), actor=CHEN).id
    assert states(town, draft) == {"one": "draft", "two": "draft"}
    with pytest.raises(Conflict) as not_yet:
        propose(town, draft)
    programme = town.programme(tranches=PARTS)
    assert programme == draft
    with pytest.raises(Conflict) as with_it:
        propose(town, programme, "one")
    with pytest.raises(NotFound) as unknown:
        propose(town, programme, "three")
    propose(town, programme)
    decided(town, programme, "close")
    with pytest.raises(Conflict) as closed:
        approve(town, programme)
    codes = [each.value.code for each in (not_yet, with_it, closed)]
    assert (codes, unknown.value.code) == (["TRANCHE_STATE"] * 3, "TRANCHE_NOT_FOUND")
    assert authorised(town) == 300_000


def test_a_new_version_keeps_the_approval_and_asks_anew_only_for_a_larger_tranche(town):
    first = town.programme(tranches=PARTS)
    release(town, first)
    for fen in (300_000, 100_000):  # the second one out of tranche two
        town.voucher(fen, first)
    second = next_version(town, first, version=2, tranches=[PARTS[0], PARTS[1] | {"fen": 600_000}])
    assert (states(town, second)["two"], authorised(town)) == ("approved", 900_000)
    larger = [{"code": "one", "fen": 300_000}, PARTS[1] | {"fen": 800_000}]
    third = next_version(town, second, version=3, pool_fen=1_100_000, tranches=larger)
    assert (states(town, third)["two"], authorised(town)) == ("waits", 400_000)  # what the first one issued
    release(town, third)
    assert authorised(town) == 1_100_000
    assert pool_of(town, third)["unissued_fen"] == 700_000
    town.check()


def test_all_versions_together_never_authorise_more_than_the_pool_where_a_tranche_is_approved_late(town):
    """What a closed version got back before the approval is not authorised a second time."""
    first = town.programme(tranches=PARTS, late_usage_grace_days=0)
    release(town, first)
    town.voucher(300_000, first)
    voucher = town.voucher(100_000, first)
    larger = [{"code": "one", "fen": 300_000}, PARTS[1] | {"fen": 800_000}]
    second = next_version(town, first, version=2, pool_fen=1_100_000, tranches=larger)
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.end_of(voucher) + 2 * DAY)
    assert (town.balance(f"Q.unissued[{first}]"), authorised(town)) == (400_000, 400_000)
    release(town, second)
    assert town.balance(f"Q.unissued[{first}]") == 0
    assert town.balance(f"Q.unissued[{second}]") == authorised(town) == 800_000
    town.check()


def test_two_persons_at_once_authorise_a_tranche_once(town):
    programme = town.programme(tranches=PARTS)
    propose(town, programme)
    outcomes, together = [], threading.Barrier(2)

    def one(member):
        together.wait()
        try:
            approve(town, programme, member=member)
            outcomes.append("approved")
        except Conflict as refused:
            outcomes.append(refused.code)

    threads = [threading.Thread(target=one, args=(member,)) for member in (LIN, "mem_zhao")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["TRANCHE_STATE", "approved"]
    assert authorised(town) == 1_000_000
    town.check()


def test_the_database_keeps_one_live_approval_for_each_tranche_of_a_version(town):
    programme = town.programme(tranches=PARTS)
    propose(town, programme)
    with pytest.raises(IntegrityError), transaction(town.engine) as session:
        session.add(TrancheApproval(id="tra_2", programme_id=programme, tranche="two", fen=1, proposed_by=LIN))


def test_reports_show_a_tranche_that_waits_as_it_was_at_their_instant(town, tmp_path):
    blobs = FolderBlobs(tmp_path / "blobs")
    programme = town.programme(tranches=PARTS)
    before = instant()
    release(town, programme)

    def told(as_of=None):
        (pool,) = report(town, blobs, "pool-position", as_of)
        caps = {row["period"]: row["waits"] for row in report(town, blobs, "cap-usage", as_of)}
        return pool["waiting_fen"], pool["authorised_fen"], pool["conserved"], caps

    assert told(before) == (700_000, 300_000, True, {"one": False, "two": True})
    assert told() == (0, 1_000_000, True, {"one": False, "two": False})
    with transaction(town.engine) as session:
        set_programme_state(session, programme, "close", actor=CHEN)
    assert told(before) == (700_000, 300_000, True, {"one": False, "two": True})


def test_a_home_from_before_has_no_tranche_that_waits(engine, tmp_path):
    """0021, there and back: a stored file without the field reads as approved with its programme."""
    if engine.dialect.name == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'old.db'}")
        upgrade(engine)
    town = Town(engine, tmp_path / "journal", now=now_ms())
    programme = town.programme()
    migrate(engine, command.downgrade, "0020")
    try:
        assert not sa.inspect(engine).has_table("tranche_approval")
        with engine.begin() as connection:
            document = town_document(connection, programme)
            document["tranches"] = [{"code": "one", "fen": 1_000_000}]
            table = Programme.__table__
            connection.execute(sa.update(table).where(table.c.id == programme).values(document=document))
    finally:
        migrate(engine, command.upgrade, "head")
    assert differences(engine) == []
    assert states(town, programme) == {"one": "approved"}
    town.voucher(1_000, programme)
    town.check()
    town.admission.close()


def town_document(connection, programme):
    table = Programme.__table__
    return dict(connection.execute(sa.select(table.c.document).where(table.c.id == programme)).scalar_one())
