"""Versions of one programme: one runs at a time, and pool and caps hold over all of them."""

import pytest
import sqlalchemy as sa
from alembic import command
from sqlmodel import select

import serving.leases
from marketplace.claims.tables import ClaimBatch
from marketplace.db import open_database, reading, transaction
from marketplace.integrity.books import compare
from marketplace.ledger.tables import CapCounter
from marketplace.migrations.upgrade import _config, upgrade
from marketplace.organisations.tables import Organisation
from marketplace.vouchers import applications, closing, issuing
from marketplace.vouchers.rollout import (
    get_programme,
    list_programmes,
    load_programme,
    load_shipped,
    set_programme_state,
)
from marketplace.vouchers.tables import Programme, Voucher
from marketplace.vouchers.versions import decide_fresh
from model_store.errors import Conflict
from tests.marketplace.stores import on_both_stores
from tests.marketplace.town import CHEN, Town, programme_file


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc)


def decided(town, programme, decision):
    with transaction(town.engine) as session:
        set_programme_state(session, programme, decision, actor=CHEN)


def next_version(town, before, **changes):
    """Close what runs, and put the next version in its place."""
    decided(town, before, "close")
    return town.programme(**changes)


def authorised(town):
    return -town.total("Q.auth")


def caps_of(town, prefix):
    return {row.code: (row.limit_fen, row.used_fen + row.held_fen) for row in town.rows(CapCounter)
            if row.code.startswith(prefix)}  # fmt: skip


@pytest.mark.parametrize("state", ["active", "frozen"])
def test_one_version_of_a_programme_runs_at_a_time(town, state):
    first = town.programme()
    if state == "frozen":
        decided(town, first, "freeze")
    with pytest.raises(Conflict) as refused:
        town.programme(version=2)
    assert refused.value.code == "PROGRAMME_VERSION_RUNS"
    assert refused.value.details == {"code": "town", "versions": [1]}
    assert authorised(town) == 1_000_000
    assert next_version(town, first, version=2)
    with reading(town.engine) as session:
        rows, _ = list_programmes(session)
        assert [(row.version, row.state) for row in rows] == [(2, "active"), (1, "closed")]


def test_invariant_2_pool_and_cap_hold_over_all_versions(town):
    """A pool of one million was authorised twice, and an enterprise had its cap twice."""
    first = town.programme()
    town.voucher(500_000, first)
    second = next_version(town, first, version=2)
    assert authorised(town) == 1_000_000
    assert town.balance(f"Q.unissued[{first}]") == 0
    assert town.balance(f"Q.unissued[{second}]") == 500_000
    with pytest.raises(Conflict) as refused:
        town.voucher(1, second)
    assert refused.value.code == "CAP_REACHED"
    town.voucher(500_000, second, organisation="org_other")
    with pytest.raises(Conflict) as refused:
        town.voucher(1, second, organisation="org_vendor")
    assert refused.value.code in ("POOL_EXHAUSTED", "NOT_IN_SCOPE")
    assert caps_of(town, "C.pool") == {"C.pool[town,one]": (1_000_000, 1_000_000)}
    assert caps_of(town, "C.ent") == {
        "C.ent[town,org_factory,all]": (500_000, 500_000),
        "C.ent[town,org_other,all]": (500_000, 500_000),
    }
    town.check()


def test_a_voucher_of_a_closed_version_is_used_on_and_counts_in_the_new_one(town):
    first = town.programme()
    voucher = town.voucher(1_000, first)
    town.subscribe(contract_fen=3_000)
    second = next_version(town, first, version=2)
    node = town.node()
    node.call(count=100)
    node.stop()
    with reading(town.engine) as session:
        assert issuing.position(session, session.get_one(Voucher, voucher))["used_fen"] == 12
    town.voucher(499_000, second)
    with pytest.raises(Conflict):
        town.voucher(1, second)
    town.check()


def test_what_comes_back_to_a_closed_version_is_authorised_anew_by_the_next(town):
    first = town.programme()
    voucher = town.voucher(400_000, first)
    second = next_version(town, first, version=2)
    town.now = town.end_of(voucher) + 2 * 86_400_000
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now)
    assert (town.balance(f"Q.unissued[{first}]"), town.balance(f"Q.unissued[{second}]")) == (400_000, 600_000)
    town.voucher(500_000, second)
    with pytest.raises(Conflict) as refused:
        town.voucher(100_001, second, organisation="org_other")
    assert refused.value.code == "POOL_EXHAUSTED"
    third = next_version(town, second, version=3)
    assert town.balance(f"Q.unissued[{third}]") == 500_000
    assert authorised(town) == 1_000_000
    town.voucher(500_000, third, organisation="org_other")
    town.check()


def test_a_new_version_s_tranches_leave_what_earlier_ones_committed(town):
    first = town.programme()
    town.voucher(300_000, first)
    other = [{"code": "two", "fen": 800_000}]
    with pytest.raises(Conflict) as refused:
        next_version(town, first, version=2, tranches=other)
    assert refused.value.code == "PROGRAMME_POOL_COMMITTED"
    assert refused.value.details == {"committed": {"one": 300_000}}
    town.programme(version=3, tranches=[{"code": "one", "fen": 300_000}, {"code": "two", "fen": 700_000}])
    assert authorised(town) == 1_000_000
    assert caps_of(town, "C.pool") == {"C.pool[town,one]": (300_000, 300_000), "C.pool[town,two]": (700_000, 0)}
    town.check()


def test_what_is_committed_is_taken_off_its_tranche():
    rules = programme_file(tranches=[{"code": "one", "fen": 400_000}, {"code": "two", "fen": 500_000}])
    assert decide_fresh(rules, {}) == {"one": 400_000, "two": 500_000}
    assert decide_fresh(rules, {"one": 400_000, "old": 100_000}) == {"one": 0, "two": 500_000}
    for committed in ({"one": 400_001}, {"old": 100_001}):
        with pytest.raises(Conflict):
            decide_fresh(rules, committed)


def test_a_lower_cap_leaves_what_was_issued_and_gives_nothing_more(town):
    first = town.programme()
    town.voucher(400_000, first)
    second = next_version(town, first, version=2, cap_fen=300_000)
    with pytest.raises(Conflict) as refused:
        town.voucher(1, second)
    assert refused.value.code == "CAP_REACHED"
    third = next_version(town, second, version=3, cap_fen=600_000)
    town.voucher(200_000, third)
    with pytest.raises(Conflict):
        town.voucher(1, third)
    town.check()


def test_a_version_does_not_change_the_period_of_the_cap_once_vouchers_were_issued(town):
    first = town.programme()
    second = next_version(town, first, version=2, cap_period="calendar_year")
    town.voucher(500_000, second)
    with pytest.raises(Conflict) as refused:
        next_version(town, second, version=3)
    assert refused.value.code == "PROGRAMME_CAP_PERIOD"
    town.programme(version=4, cap_period="calendar_year")


def test_a_draft_of_the_next_version_stands_in_no_applicant_s_way(town):
    first = town.programme()
    with transaction(town.engine) as session:
        draft = load_programme(session, programme_file(version=2), actor=CHEN)
        assert get_programme(session, "town").id == draft.id
        owner = session.get_one(Organisation, "org_factory")
        row = applications.create_application(session, owner, "town", requested_fen=1, actor="f")
        assert row.programme_id == first


def test_a_home_whose_demonstration_is_of_an_earlier_version_still_starts(town):
    with transaction(town.engine) as session:
        load_shipped(session, demo=True)
        newest = get_programme(session, "demo-reimburse")
        older = newest.document | {"version": 1, "code": "demo-reimburse"}
        newest.version, newest.document = 1, older  # as a home from before version 2 has it
        session.add(newest)
    for _ in range(2):
        with transaction(town.engine) as session:
            load_shipped(session, demo=True)
    with reading(town.engine) as session:
        query = select(Programme.version, Programme.state).where(Programme.code == "demo-reimburse")
        assert sorted(session.exec(query)) == [(1, "closed"), (2, "active")]
    town.check()


# --- the end of a programme -------------------------------------------------------------------------------------------


def audit_refused(town, programme):
    with pytest.raises(Conflict) as refused, transaction(town.engine) as session:
        set_programme_state(session, programme, "audit", actor=CHEN, at_ms=town.now)
    assert refused.value.code == "PROGRAMME_NOT_SETTLED"
    return refused.value.details


def test_a_programme_is_audited_once_nothing_of_it_may_still_be_used_claimed_or_owed(town):
    """It passed with an active voucher of 500,000 fen."""
    programme = town.programme()
    voucher = town.voucher(500_000, programme)
    town.subscribe(contract_fen=3_000)
    node = town.node()
    node.call(count=100)
    node.flush()
    decided(town, programme, "close")
    assert audit_refused(town, programme) == {"vouchers": 1, "held_fen": 988, "unclaimed_fen": 12}
    town.now = town.end_of(voucher) + 2 * 86_400_000
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now)
    assert set(audit_refused(town, programme)) == {"held_fen", "unclaimed_fen"}  # the node's lease
    node.stop()
    assert audit_refused(town, programme) == {"unclaimed_fen": 12}
    with transaction(town.engine) as session:
        batch = ClaimBatch(id="clm_1", programme_id=programme, from_day="2027-01-01", to_day="2027-01-31")
        session.add(batch)
    town.pass_days(100)  # past the redeem-by day
    assert audit_refused(town, programme) == {"claim_batches": 1}
    with transaction(town.engine) as session:
        session.get_one(ClaimBatch, "clm_1").state = "discarded"
    with transaction(town.engine) as session:
        row = set_programme_state(session, programme, "audit", actor=CHEN, at_ms=town.now)
        assert row.state == "audited"
    town.check()


# --- homes from before the counters were one --------------------------------------------------------------------------

_SPLIT = (
    "INSERT INTO programme (id, code, version, title_zh, title_en, state, document, is_demo, activated_by,"
    " created_at_ms) SELECT 'prg_two', code, 2, title_zh, title_en, state, document, is_demo, activated_by,"
    " created_at_ms FROM programme WHERE id = :first",
    "UPDATE voucher SET programme_id = 'prg_two', cap_code = 'C.ent[prg_two,org_factory,all]' WHERE id = :voucher",
    "UPDATE cap_counter SET held_fen = held_fen - 400000 WHERE code LIKE 'C.ent%' OR code LIKE 'C.pool%'",
    "INSERT INTO cap_counter (code, limit_fen, used_fen, held_fen)"
    " VALUES ('C.ent[prg_two,org_factory,all]', 500000, 0, 400000), ('C.pool[prg_two,one]', 1000000, 0, 400000)",
)


def test_a_migration_adds_up_what_several_versions_counted(engine, tmp_path, request, monkeypatch):
    """Both versions of an old home were active; its figures are kept, and nothing more is issued over cap or pool."""
    if engine.dialect.name == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'old.db'}")
        upgrade(engine)
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    first = town.programme(cap_fen=500_000)
    vouchers = [town.voucher(fen, first) for fen in (100_000, 400_000)]
    before = {row.code: (row.limit_fen, row.used_fen, row.held_fen) for row in town.rows(CapCounter)}
    migrate(engine, command.downgrade, "0014")
    try:
        with engine.begin() as connection:
            codes = set(connection.scalars(sa.text("SELECT code FROM cap_counter")))
            assert codes == {f"C.ent[{first},org_factory,all]", f"C.pool[{first},one]"}
            for statement in _SPLIT:
                named = {"first": first, "voucher": vouchers[1]}
                wanted = {name: value for name, value in named.items() if f":{name}" in statement}
                connection.execute(sa.text(statement), wanted)
    finally:
        migrate(engine, command.upgrade, "head")
    assert {row.code: (row.limit_fen, row.used_fen, row.held_fen) for row in town.rows(CapCounter)} == before
    assert {(row.cap_code, row.pool_code) for row in town.rows(Voucher)} == {
        ("C.ent[town,org_factory,all]", "C.pool[town,one]")
    }
    with reading(engine) as session:
        books = compare(session)
        assert books.sound, books.wrong
    for programme in (first, "prg_two"):
        with pytest.raises(Conflict):
            town.voucher(1, programme)
    with pytest.raises(RuntimeError):
        migrate(engine, command.downgrade, "0014")


def test_a_programme_from_before_pays_for_a_contract_out_of_several_vouchers_as_it_did(tmp_path, monkeypatch):
    """Every stored file said `contract_once`, by default, and nothing read it."""
    engine = open_database(f"sqlite:///{tmp_path / 'old.db'}")
    upgrade(engine)
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    programme = town.programme(contract_once=True)
    before = town.get(Programme, programme).document
    migrate(engine, command.downgrade, "0017")
    migrate(engine, command.upgrade, "head")
    assert town.get(Programme, programme).document == {**before, "contract_once": False}


def migrate(engine, run, revision):
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        run(_config(connection), revision)
