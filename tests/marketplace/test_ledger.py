"""The ledger: balanced, posted once, append-only, floored, and rebuilt by replay to the same hash."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import select

from marketplace.catalogue.prices import add_price
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.ledger import accounts, caps, claim_postings, guards, postings
from marketplace.ledger.posting import Entry, balance, balances, check_entries, entries_of, post, post_all
from marketplace.ledger.rebuild import hash_state, rebuild, trial_balance
from marketplace.ledger.tables import CapCounter, LedgerAccount, LedgerTransfer
from marketplace.organisations import audit
from marketplace.usage.tables import Usage
from model_store.errors import Broken, Conflict
from tests.marketplace.shelf import add_listing, add_organisation
from tests.postgres import postgres_server

NOW = 1_800_000_000_000


@pytest.fixture(scope="module")
def postgres_url():
    yield from postgres_server()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request, engine):
    """The same test on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield engine
        return
    other = open_database(request.getfixturevalue("postgres_url"))
    with other.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    create_tables(other)
    yield other
    other.dispose()


def a_usage():
    return Usage(usage_id="u", key_id="k", organisation_id="o", model="m@1", amount_micro=1, occurred_at_ms=NOW)


def issue(session, fen=100, voucher="v1"):
    post_all(session, [postings.p1_tranche_approved("p", f"t-{voucher}", 1_000, NOW)])
    post_all(session, [postings.p2_voucher_issued("p", voucher, fen, NOW)])


def test_invariant_1_entries_sum_to_zero_in_each_ledger():
    check_entries("P1", [Entry("Q.auth[p]", -5), Entry("Q.unissued[p]", 5)])
    for entries in (
        [],
        [Entry("Q.auth[p]", -5)],
        [Entry("Q.auth[p]", -5), Entry("M.fee", 5)],  # zero in sum, but not in either ledger
        [Entry("Q.auth[p]", 0), Entry("Q.unissued[p]", 0)],
        [Entry("Q.auth[p]", -1.0), Entry("Q.unissued[p]", 1.0)],
        [Entry("Q.auth[p]", -(10**15) - 1), Entry("Q.unissued[p]", 10**15 + 1)],
    ):
        with pytest.raises(ValueError):
            check_entries("P1", entries)
    with pytest.raises(ValueError, match="not a ledger account"):
        check_entries("P1", [Entry("X.auth", -5), Entry("X.unissued", 5)])


@given(
    gross=st.integers(1, 10**9),
    posted=st.integers(0, 10**12),
    share=st.fractions(0, 1),
    fee=st.integers(0, 5_000),
    vat=st.integers(0, 5_000),
    mode=st.sampled_from(postings.MODES),
)
def test_invariant_1_a_charge_balances_whatever_its_terms(gross, posted, share, fee, vat, mode):
    subsidy = int(gross * share)
    posting = postings.p5_used(
        event="e",
        enterprise="o",
        provider="s",
        gross_fen=gross,
        posted_gross_fen=posted,
        terms=postings.Terms(fee, vat),
        occurred_at_ms=NOW,
        programme="p",
        reservation="r",
        mode=mode,
        draws={"l1": subsidy // 2, "l2": subsidy - subsidy // 2},
    )
    check_entries("P5", posting.entries)
    of = {entry.account: entry.amount_fen for entry in posting.entries}
    own, city = of.get("M.recv.ent[o]", 0), of.get("M.recv.gov[p]", 0)
    assert own + city == gross
    assert city == (subsidy if mode == "deduct" else 0)
    assert of.get("Q.used[r]", 0) == subsidy


LINES = st.lists(st.tuples(st.sampled_from("stu"), st.integers(1, 10**9), st.fractions(0, 1)), min_size=1, max_size=8)


@given(lines=LINES, fee=st.integers(0, 5_000), vat=st.integers(0, 5_000), payee=st.sampled_from(claim_postings.PAYEES))
def test_whoever_is_paid_the_city_then_owes_nothing_and_nobody_is_owed_its_part_twice(lines, fee, vat, payee):
    """Charges of several providers, each of gross g and subsidy s, and the payment of all s."""
    mode = "reimburse" if payee == "enterprise" else "deduct"
    held, due, subsidy = Counter(), Counter(), Counter()
    for number, (provider, gross, share) in enumerate(lines):
        drawn = int(gross * share)
        charge = postings.p5_used(
            event=str(number), enterprise="o", provider=provider, gross_fen=gross, posted_gross_fen=0,
            terms=postings.Terms(fee, vat), occurred_at_ms=NOW, programme="p", reservation="r", mode=mode,
            draws={"l": drawn},
        )  # fmt: skip
        check_entries("P5", charge.entries)
        for entry in charge.entries:
            held[entry.account] += entry.amount_fen
            due[provider] += -entry.amount_fen if entry.account.startswith("M.pay.provider") else 0
        subsidy += Counter({provider: drawn})  # nothing is claimed of a charge without a share
    if not subsidy:
        return
    payment = claim_postings.p10_paid("b", "p", subsidy, payee, NOW)
    check_entries("P10", payment.entries)
    for entry in payment.entries:
        held[entry.account] += entry.amount_fen
    assert held["M.recv.gov[p]"] == 0
    assert held["M.bank"] == (subsidy.total() if payee == "platform" else 0)
    for provider, fen in due.items():
        direct = subsidy[provider] if payee == "provider" else 0
        assert held[f"M.pay.provider[{provider}]"] == direct - fen
    assert sum(fen for account, fen in held.items() if account.startswith("M.")) == 0


def test_nobody_is_paid_whom_the_programme_does_not_name():
    with pytest.raises(ValueError, match="payee"):
        claim_postings.p10_paid("b", "p", {"s": 1}, "", NOW)


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=30), st.integers(0, 10_000))
def test_fee_and_vat_do_not_depend_on_how_usage_was_batched(parts, basis_points):
    fees, posted = 0, 0
    for gross in parts:
        posting = postings.p5_used(
            event="e", enterprise="o", provider="s", gross_fen=gross, posted_gross_fen=posted,
            terms=postings.Terms(fee_bp=basis_points), occurred_at_ms=NOW,
        )  # fmt: skip
        fees -= sum(entry.amount_fen for entry in posting.entries if entry.account == accounts.FEE)
        posted += gross
    assert fees == sum(parts) * basis_points // 10_000


def test_a_charge_that_makes_no_sense_is_never_built():
    facts = {"event": "e", "enterprise": "o", "provider": "s", "posted_gross_fen": 0, "occurred_at_ms": NOW}
    terms = postings.Terms()
    for gross, draws in ((0, {}), (-1, {}), (1, {"l": 2}), (2, {"l": -1, "k": 2})):
        with pytest.raises(ValueError):
            postings.p5_used(gross_fen=gross, terms=terms, draws=draws, **facts)
    with pytest.raises(ValueError, match="settlement mode"):
        postings.p5_used(gross_fen=1, terms=terms, mode="barter", **facts)
    with pytest.raises(ValueError, match="basis points"):
        postings.Terms(fee_bp=9_000, vat_bp=2_000)
    with pytest.raises(ValueError, match="positive"):
        postings.p3_reserved("v", "r", 0, NOW)


def test_each_posting_moves_what_the_design_says(either):
    with transaction(either) as session:
        issue(session, 100)
        post_all(session, [postings.p3_reserved("v1", "r", 60, NOW)])
        post_all(session, [postings.p4_leased("r", "l", 30, 30, NOW)])
        charge = postings.p5_used(
            event="r:1", enterprise="o", provider="s", gross_fen=30, posted_gross_fen=0, terms=postings.Terms(500, 600),
            occurred_at_ms=NOW, programme="p", reservation="r", mode="deduct", draws={"l": 10},
        )  # fmt: skip
        post_all(session, [charge, postings.p6_sealed("r", "l", 20, 20, NOW)])
        post_all(session, [postings.p7_contract_ended("v1", "r", 5, 5, NOW)])
        post_all(session, [postings.p8_lapsed("p", "v1", 45, {"r": 45}, 90, NOW)])
    with reading(either) as session:
        codes = session.exec(select(LedgerAccount.code)).all()
        assert balances(session, codes) == {
            "Q.auth[p]": -1_000, "Q.unissued[p]": 990, "Q.avail[v1]": 0, "Q.resv[r]": 0, "Q.lease[l]": 0,
            "Q.used[r]": 10, "M.recv.ent[o]": 20, "M.recv.gov[p]": 10, "M.pay.provider[s]": -28, "M.fee": -1,
            "M.vat": -1,
        }  # fmt: skip
        kinds = session.exec(select(LedgerTransfer.kind).order_by(LedgerTransfer.id)).all()
        assert kinds == ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8"]


def test_invariant_4_the_same_event_is_posted_once(either):
    posting = postings.p1_tranche_approved("p", "first", 500, NOW)
    for _ in range(3):
        with transaction(either) as session:
            transfer = post(session, posting.kind, posting.event_key, posting.entries, NOW, "tranche")
            assert entries_of(session, transfer) == list(posting.entries)
    with reading(either) as session:
        assert balance(session, "Q.unissued[p]") == 500
        assert len(session.exec(select(LedgerTransfer)).all()) == 1


def test_an_event_key_with_other_entries_is_refused(either):
    with transaction(either) as session:
        post_all(session, [postings.p1_tranche_approved("p", "first", 500, NOW)])
    with pytest.raises(Broken) as refused, transaction(either) as session:
        post_all(session, [postings.p1_tranche_approved("p", "first", 501, NOW)])
    assert refused.value.code == "EVENT_KEY_REUSED"


def test_invariant_2_no_entitlement_goes_below_zero(either):
    with transaction(either) as session:
        issue(session, 100)
    with pytest.raises(Conflict) as refused, transaction(either) as session:
        post_all(session, [postings.p3_reserved("v1", "r", 101, NOW)])
    assert refused.value.code == "BALANCE_TOO_LOW"
    assert refused.value.details["accounts"] == ["Q.avail[v1]"]
    with reading(either) as session:
        assert (balance(session, "Q.avail[v1]"), balance(session, "Q.resv[r]")) == (100, 0)
    with pytest.raises(IntegrityError), transaction(either) as session:  # the database itself, without our code
        session.connection().execute(text("UPDATE ledger_account SET balance_fen = -1 WHERE code = 'Q.avail[v1]'"))


def test_a_balance_held_by_the_session_is_read_anew_after_a_posting(engine):
    with transaction(engine) as session:
        issue(session, 100)
        row = session.get_one(LedgerAccount, "Q.avail[v1]")
        post_all(session, [postings.p3_reserved("v1", "r", 40, NOW)])
        assert row.balance_fen == 60
        assert balance(session, "Q.avail[v1]", lock=True) == 60


def test_invariant_2_caps_hold(either):
    with transaction(either) as session:
        cap = caps.open_cap(session, accounts.cap_enterprise("p", "o", "2026"), 100)
        caps.hold(session, cap, 70)
        caps.use(session, cap, 30)
        caps.release(session, cap, 10)
        assert (cap.used_fen, cap.held_fen, caps.room(cap)) == (30, 30, 40)
        assert caps.open_cap(session, cap.code, 999_999).limit_fen == 100
        with pytest.raises(Conflict) as refused:
            caps.hold(session, cap, 41)
        assert (refused.value.code, refused.value.details["room_fen"]) == ("CAP_REACHED", 40)
        for wrong in (lambda: caps.hold(session, cap, -1), lambda: caps.release(session, cap, 31)):
            with pytest.raises(ValueError):
                wrong()
    with pytest.raises(IntegrityError), transaction(either) as session:
        session.get_one(CapCounter, "C.ent[p,o,2026]").held_fen = 80  # refused when the transaction flushes


def test_invariant_11_a_standing_counter_is_never_seeded_again(either):
    """A market that starts anew finds its counters as they stood, whatever limit it opens them with."""
    code = accounts.cap_enterprise("p", "o", "2026")
    with transaction(either) as session:
        caps.hold(session, caps.open_cap(session, code, 100), 70)
    with transaction(either) as session:
        cap = caps.open_cap(session, code, 100)
        assert (cap.used_fen, cap.held_fen, caps.room(cap)) == (0, 70, 30)


@pytest.mark.parametrize("table", ["ledger_transfer", "ledger_entry", "audit_event", "price_version", "usage"])
@pytest.mark.parametrize("verb", ["update", "delete"])
def test_invariant_9_written_rows_are_never_changed(either, table, verb):
    with transaction(either) as session:
        issue(session, 100)
        add_organisation(session, "acme")
        listing = add_listing(session, "acme/steel")
        add_price(session, listing, kind="use", unit="calls", micro_per_unit=1, actor="a", at_ms=NOW)
        audit.record(session, actor="a", action="x", subject="y")
        session.add(
            Usage(usage_id="u", key_id="k", organisation_id="o", model="m@1", amount_micro=1, occurred_at_ms=NOW)
        )
    column = {"ledger_entry": "amount_fen", "ledger_transfer": "memo", "usage": "amount_micro"}.get(table)
    column = column or {"audit_event": "actor", "price_version": "micro_per_unit"}[table]
    value = "'9'" if column in ("memo", "actor") else "9"
    statement = f"UPDATE {table} SET {column} = {value}" if verb == "update" else f"DELETE FROM {table}"
    with pytest.raises(DBAPIError, match="append-only"), either.begin() as connection:
        connection.execute(text(statement))


def test_a_usage_row_gains_its_transfer_once(either):
    with transaction(either) as session:
        session.add(
            Usage(usage_id="u", key_id="k", organisation_id="o", model="m@1", amount_micro=1, occurred_at_ms=NOW)
        )
    with either.begin() as connection:
        connection.execute(text("UPDATE usage SET transfer_id = 7"))
    with pytest.raises(DBAPIError, match="append-only"), either.begin() as connection:
        connection.execute(text("UPDATE usage SET transfer_id = 8"))


def test_guards_come_off_for_a_migration_and_go_back_on(either):
    with transaction(either) as session:
        audit.record(session, actor="a", action="x", subject="y")
    with either.begin() as connection:
        guards.remove(connection)
        connection.execute(text("UPDATE audit_event SET actor = 'b'"))
        guards.install(connection)
        guards.install(connection)
    with pytest.raises(DBAPIError, match="append-only"), either.begin() as connection:
        connection.execute(text("UPDATE audit_event SET actor = 'c'"))


def test_guards_leave_tables_that_are_not_there_alone():
    assert guards.statements("sqlite", frozenset({"other"})) == []
    assert len(guards.statements("postgresql", frozenset({"other"}))) == 1  # the function alone


def test_invariant_9_replay_rebuilds_the_same_balances_to_the_same_hash(either):
    with transaction(either) as session:
        for number in range(5):
            issue(session, 10 + number, f"v{number}")
            post_all(session, [postings.p3_reserved(f"v{number}", f"r{number}", 5, NOW)])
    with reading(either) as session:
        rebuilt = rebuild(session)
        assert rebuilt.sound
        assert rebuilt.sha256 == rebuilt.kept_sha256 == hash_state(rebuilt.balances)
        assert rebuilt.entries == 30
        assert sum(rebuilt.balances.values()) == 0
        trial = trial_balance(session)
        assert trial["balanced"]
        assert trial["ledgers"] == {"Q": 0}
        of = {row["account"]: row for row in trial["items"]}
        assert of["Q.avail"] == {
            "account": "Q.avail", "ledger": "Q", "balance_fen": 35, "into_fen": 60, "out_fen": 25, "accounts": 5,
        }  # fmt: skip


def test_replay_finds_a_balance_that_was_tampered_with(engine):
    with transaction(engine) as session:
        issue(session, 100)
        session.add(LedgerAccount(code="Q.resv[new]", ledger="Q"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE ledger_account SET balance_fen = 99 WHERE code = 'Q.avail[v1]'"))
    with reading(engine) as session:
        rebuilt = rebuild(session)
        assert not rebuilt.sound
        assert rebuilt.wrong == {"Q.avail[v1]": (99, 100)}
        assert not trial_balance(session)["balanced"]


def test_replay_finds_a_transfer_that_does_not_balance(engine):
    with transaction(engine) as session:
        issue(session, 100)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO ledger_entry VALUES (1, 9, 'Q.avail[v1]', 5)"))
    with reading(engine) as session:
        assert rebuild(session).lopsided == (1,)
