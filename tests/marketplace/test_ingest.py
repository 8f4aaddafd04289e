"""From the journal to the ledger: rated again, rounded cumulatively, charged once, in both settlement modes."""

import threading
from datetime import date

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlmodel import select

from marketplace.clock import start_of_day_ms
from marketplace.db import transaction
from marketplace.organisations.tables import Notice
from marketplace.usage import batch as batches
from marketplace.usage.batch import DuplicateInFlight
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.usage.rounding import Meter, accumulate, decide_draws, is_covered
from marketplace.usage.tables import SelfPayMeter, TrialCount, Usage
from marketplace.vouchers.tables import LeaseRow, NodeEpoch, Reservation, Voucher
from serving.digests import mint_usage_id
from serving.journal import EndEntry, ProgressEntry, StartEntry, read_segment, segment_path
from serving.metering import UsageRecord

MICRO = 1_000_000


# --- the rounding -----------------------------------------------------------------------------------------------------


def test_two_price_versions_of_half_a_fen_each_post_one_fen_not_two():
    first = accumulate(Meter(), 500_000, 500_000, 1, 1)
    second = accumulate(first.meter, 500_000, 500_000, 1, 1)
    assert (first.gross_fen, first.subsidy_fen) == (0, 0)
    assert (second.gross_fen, second.subsidy_fen) == (1, 1)


def test_three_fen_then_eight_hundredths_at_65_percent_never_charge_subsidy_without_gross():
    first = accumulate(Meter(), 3_000_000, 3_000_000, 65, 100)
    second = accumulate(first.meter, 80_000, 80_000, 65, 100)
    third = accumulate(second.meter, 920_000, 920_000, 65, 100)
    assert (first.gross_fen, first.subsidy_fen) == (3, 1)
    assert (second.gross_fen, second.subsidy_fen) == (0, 0)
    assert (third.gross_fen, third.subsidy_fen) == (1, 1)


@given(
    st.lists(st.tuples(st.integers(0, 5 * MICRO), st.booleans()), max_size=60),
    st.integers(1, 100),
    st.integers(0, 99),
)
def test_the_ratio_holds_at_every_instant_and_every_micro_fen_is_accounted_for(calls, den, less):
    num = max(1, den - less)
    meter, gross, eligible = Meter(), 0, 0
    for amount, pays in calls:
        charge = accumulate(meter, amount, amount if pays else 0, num, den)
        meter, gross, eligible = charge.meter, gross + amount, eligible + (amount if pays else 0)
        assert 0 <= charge.subsidy_fen <= charge.gross_fen
        assert meter.posted_gross_fen == gross // MICRO
        assert meter.posted_subsidy_fen * den <= meter.posted_gross_fen * num
        assert meter.posted_subsidy_fen * den * MICRO <= eligible * num
    if all(pays for _, pays in calls):
        assert meter.posted_subsidy_fen == meter.posted_gross_fen * num // den


@given(st.dictionaries(st.text("lm", min_size=1, max_size=3), st.integers(-2, 9), max_size=6))
def test_draws_never_take_more_than_a_lease_holds(leases):
    held = list(leases.items())
    whole = sum(max(0, fen) for _, fen in held)
    draws = decide_draws(held, whole)
    assert sum(draws.values()) == whole
    assert all(0 < fen <= leases[lease] for lease, fen in draws.items())
    with pytest.raises(ValueError, match="lack 1 fen"):
        decide_draws(held, whole + 1)


def test_the_node_s_own_rule_is_asked_again():
    assert is_covered(2 * MICRO, MICRO, 1, 3, 1)
    assert not is_covered(2 * MICRO, MICRO + 1, 1, 3, 1)


# --- charging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reimburse", "deduct"])
def test_a_thousand_calls_at_37_hundredths_of_a_fen_cost_370_of_which_the_voucher_pays_123(town, mode):
    voucher = town.voucher(5_000, settlement_mode=mode, payee="enterprise" if mode == "reimburse" else "platform")
    town.subscribe(100_000)
    node = town.node()
    node.call(count=1_000)
    node.flush()
    town.check()
    assert town.total("Q.used") == 123
    assert town.balance("M.recv.ent[org_factory]") == (370 if mode == "reimburse" else 247)
    assert town.total("M.recv.gov") == (0 if mode == "reimburse" else 123)
    assert town.balance("M.fee") == -18  # 5% of 370, down
    assert town.balance("M.vat") == -22
    assert town.balance("M.pay.provider[org_vendor]") == -330
    row = town.rows(Reservation)[0]
    assert (row.posted_gross_fen, row.posted_subsidy_fen, row.cum_gross_micro) == (370, 123, 370 * MICRO)
    assert town.get(Voucher, voucher).state == "active"
    usage = town.rows(Usage)
    assert {u.lease_kind for u in usage} == {"subsidised"}
    assert all(u.transfer_id is not None and u.listing_id and u.provider_id == "org_vendor" for u in usage)
    node.stop()
    town.check()


def test_without_a_voucher_the_enterprise_pays_what_it_opted_for(town):
    subscription = town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=10_000)
    node = town.node()
    node.call(count=100)
    node.flush()
    town.check()
    assert town.balance("M.recv.ent[org_factory]") == 37
    assert town.balance("M.pay.provider[org_vendor]") == -37
    assert town.total("Q.used") == 0
    assert town.get(SelfPayMeter, (subscription, "2027-01")).cum_gross_micro == 37 * MICRO
    node.stop()
    assert {row.state for row in town.rows(LeaseRow)} == {"settled"}


def test_invariant_4_every_acknowledged_call_is_posted_once_however_often_it_is_ingested(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    acknowledged = node.call(count=300)
    for _ in range(3):
        node.flush()
    with town.engine.begin() as connection:  # a market that lost its place reads the journal again
        connection.execute(text("UPDATE node_epoch SET last_seq = 0, offset_bytes = 0"))
    node.flush()
    assert {u.usage_id for u in town.rows(Usage)} == {r.usage_id for r in acknowledged}
    assert len(town.rows(Usage)) == 300
    assert town.balance("M.recv.ent[org_factory]") == 111
    assert node.ingest.progress.duplicates == 300
    town.check()


def test_a_retry_under_one_usage_id_is_billed_once_even_within_a_batch(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    (record,) = node.call()
    for _ in range(9):
        node.journal.usage(record)
    node.flush()
    assert len(town.rows(Usage)) == 1
    assert town.rows(Reservation)[0].cum_gross_micro == 370_000


def test_a_fen_that_waits_is_carried_by_the_next_posting(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    for _ in range(3):
        node.call()
        node.flush()
    by_time = sorted(town.rows(Usage), key=lambda u: u.seq)
    assert len({u.transfer_id for u in by_time}) == 1  # 0.37, 0.74, 1.11: the third posts a fen and carries all three
    assert by_time[0].transfer_id is not None


def test_small_batches_and_one_big_batch_come_to_the_same(town, tmp_path):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.ingest = Ingest(town.engine, town.folder, batch_records=7)
    node.call(count=100)
    node.flush()
    assert node.ingest.progress.batches == 15
    assert (town.rows(Reservation)[0].posted_gross_fen, town.total("Q.used")) == (37, 12)
    town.check()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_how_usage_is_batched_changes_nothing(parts):
    meter, whole = Meter(), Meter()
    for part in parts:
        meter = accumulate(meter, part * 370_000, part * 370_000, 1, 3).meter
    whole = accumulate(whole, sum(parts) * 370_000, sum(parts) * 370_000, 1, 3).meter
    assert meter == whole


# --- what is not charged ----------------------------------------------------------------------------------------------


def forged(record: UsageRecord, **changes) -> UsageRecord:
    return msgspec.structs.replace(record, usage_id=f"{record.usage_id[:-4]}{len(str(changes)):04d}", **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount_micro": 370_001}, "AMOUNT_MISMATCH"),
        ({"units": {"calls": -1}}, "AMOUNT_MISMATCH"),
        ({"price_version": "prc_other"}, "PRICE_UNKNOWN"),
        ({"model": "vendor/other@1"}, "PRICE_UNKNOWN"),
        ({"lease_id": "lea_none"}, "LEASE_UNKNOWN"),
        ({"organisation": "org_other"}, "LEASE_FOREIGN"),
    ],
)
def test_a_record_that_does_not_agree_is_quarantined_and_not_charged(town, changes, reason):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    (good,) = node.call()
    bad = forged(good, **changes)
    node.journal.usage(bad)
    node.flush()
    row = town.get(Usage, bad.usage_id)
    assert (row.status, row.reason, row.transfer_id) == ("quarantined", reason, None)
    assert town.get(Usage, good.usage_id).status == "ok"
    assert town.rows(Reservation)[0].cum_gross_micro == 370_000
    assert node.ingest.progress.quarantined == 1


def test_a_free_lease_that_charges_is_quarantined(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/gift", None)
    node = town.node()
    (good,) = node.call("vendor/gift")
    node.journal.usage(forged(good, amount_micro=5))
    node.flush()
    assert sorted(u.reason for u in town.rows(Usage)) == ["", "AMOUNT_MISMATCH"]
    assert town.get(Usage, good.usage_id).listing_id == "lst_vendor/gift"


def test_invariant_6_use_by_is_judged_on_the_instant_of_use_not_of_ingest(town):
    voucher = town.voucher(5_000)
    town.subscribe()
    node = town.node()
    town.now = town.end_of(voucher) - 50
    inside = node.call(count=10)
    (template,) = node.call()
    late = forged(template, occurred_at_ms=town.end_of(voucher) + 1)
    node.journal.usage(late)
    town.pass_days(20)
    node.flush()
    assert {town.get(Usage, r.usage_id).lease_kind for r in inside} == {"subsidised"}
    assert town.get(Usage, late.usage_id).lease_kind == "self_pay"
    row = town.rows(Reservation)[0]
    assert (row.cum_eligible_micro, row.cum_gross_micro) == (11 * 370_000, 12 * 370_000)
    town.check()


def test_use_beyond_what_the_lease_was_granted_is_not_the_voucher_s_to_pay(town):
    town.voucher(100)
    town.subscribe()
    node = town.node()
    (record,) = node.call()
    for number in range(400):  # a node that does not keep to its grant
        node.journal.usage(msgspec.structs.replace(record, usage_id=f"{record.usage_id[:-4]}{number:04d}"))
    node.flush()
    town.check()
    lease = town.rows(LeaseRow)[0]
    assert lease.eligible_micro <= lease.granted_fen * 3 * MICRO
    assert town.balance("M.recv.ent[org_factory]") == 148


def test_trials_are_counted_by_day_and_cost_nothing(town):
    node = town.node()
    node.call(count=3, units=20, purpose="trial")
    node.flush()
    assert town.get(TrialCount, ("org_factory", "2027-01-15")).runs == 60
    assert town.total("M.recv.ent") == 0


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_warnings_at_80_and_100_percent_of_a_voucher_come_once(town):
    town.voucher(37)
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    for _ in range(4):
        node.call(count=90)
        node.flush()
    codes = [n.code for n in town.rows(Notice) if n.code.startswith("VOUCHER_")]
    assert sorted(codes) == ["VOUCHER_100", "VOUCHER_80", "VOUCHER_ISSUED"]


def test_warnings_at_80_and_100_percent_of_the_monthly_cap_come_once(town):
    town.subscribe(0, on_voucher_end="self_pay", monthly_cap_fen=37)
    node = town.node()
    for _ in range(10):
        node.call(count=10)
        node.flush()
    assert sorted(n.code for n in town.rows(Notice)) == ["MONTHLY_CAP_100", "MONTHLY_CAP_80"]


def test_a_voucher_of_which_all_is_used_is_exhausted(town):
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/fen", 3_000_000, filing_id="flg_1")
    voucher = town.voucher(10)
    town.subscribe(model="vendor/fen")
    node = town.node()
    node.call("vendor/fen", count=10)
    node.flush()
    assert town.get(Voucher, voucher).state == "exhausted"
    assert town.balance(f"Q.used[{town.rows(Reservation)[0].id}]") == 10


# --- journals and epochs ----------------------------------------------------------------------------------------------


def test_the_thread_ingests_by_itself_and_survives_a_failure(town, monkeypatch):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=5)
    posted, failed = threading.Event(), threading.Event()
    real = batches._insert

    def sometimes(session, rows):
        if not failed.is_set():
            failed.set()
            raise DuplicateInFlight("once")
        real(session, rows)
        posted.set()

    monkeypatch.setattr(batches, "_insert", sometimes)
    monkeypatch.setattr("marketplace.usage.ingest.RETRY_S", 0.01)
    node.ingest.start()
    assert posted.wait(30)
    node.ingest.stop()
    node.flush()
    assert len(town.rows(Usage)) == 5


def test_another_writer_of_the_same_usage_rolls_the_batch_back(town, monkeypatch):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=2)
    node.flush()
    with town.engine.begin() as connection:
        connection.execute(text("UPDATE node_epoch SET last_seq = 0, offset_bytes = 0"))
    monkeypatch.setattr(batches, "_without_known", lambda session, records: list(records))
    with pytest.raises(DuplicateInFlight):
        node.flush()
    assert town.rows(Reservation)[0].cum_gross_micro == 740_000
    town.check()


def test_damage_in_a_live_journal_is_told_and_nothing_past_it_is_read(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=3)
    path = segment_path(town.folder, "n1", 1)
    whole = path.stat().st_size
    node.call(count=3)
    node.journal.sync()
    with path.open("r+b") as file:
        file.seek(whole + 20)
        file.write(b"\xff\xff\xff")
    node.flush()
    assert len(town.rows(Usage)) == 3
    assert "crc" in node.ingest.problems[path.name]
    node.die()
    close_epoch(town.engine, town.folder, "n1", 1)
    assert town.get(NodeEpoch, ("n1", 1)).torn_tail
    town.check()


def test_a_torn_tail_is_cut_said_and_costs_only_what_was_never_acknowledged(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=10)
    node.die()
    path = segment_path(town.folder, "n1", 1)
    with path.open("ab") as file:
        file.write(b"\x40\x00\x00\x00half a record")
    assert register_node(town.engine, town.folder, "n1") == 2
    row = town.get(NodeEpoch, ("n1", 1))
    assert (row.state, row.torn_tail, len(row.sha256)) == ("sealed", True, 64)
    assert len(town.rows(Usage)) == 10
    town.check()


def test_a_journal_whose_header_is_torn_holds_nothing(town):
    epoch = register_node(town.engine, town.folder, "n1")
    town.folder.mkdir(parents=True, exist_ok=True)
    segment_path(town.folder, "n1", epoch).write_bytes(b"\x10")
    ingest = Ingest(town.engine, town.folder)
    ingest.flush()
    assert "no header" in ingest.problems[f"n1-{epoch}.alj"]
    assert register_node(town.engine, town.folder, "n1") == 2
    assert town.get(NodeEpoch, ("n1", 1)).torn_tail


def test_a_power_cut_that_took_ingested_records_from_the_file_is_no_harm(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=2)
    path = segment_path(town.folder, "n1", 1)
    kept = path.stat().st_size
    node.call(count=5)
    node.flush()
    node.die()
    with path.open("r+b") as file:
        file.truncate(kept)
    close_epoch(town.engine, town.folder, "n1", 1)
    assert len(town.rows(Usage)) == 7
    assert town.get(NodeEpoch, ("n1", 1)).state == "sealed"
    town.check()


def test_a_stream_without_an_end_settles_at_its_last_counter_and_says_so(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    (record,) = node.call()
    journal = node.journal

    def stream(last: int | None, ended: bool) -> str:
        start = msgspec.structs.replace(record, usage_id=mint_usage_id(), units={"calls": 9})
        journal.append(StartEntry(journal.next_seq, start))
        if last is not None:
            journal.append(ProgressEntry(journal.next_seq, start.usage_id, {"calls": last}, last * 370_000))
        if ended:
            usage = msgspec.structs.replace(start, units={"calls": 4}, amount_micro=4 * 370_000)
            journal.append(EndEntry(journal.next_seq, usage))
        return start.usage_id

    broken, ended, silent = stream(3, False), stream(2, True), stream(None, False)
    node.die()
    close_epoch(town.engine, town.folder, "n1", 1)
    close_epoch(town.engine, town.folder, "n1", 1)  # again, as after a crash in between
    found = {u.usage_id: (u.status, u.amount_micro) for u in town.rows(Usage)}
    assert found[broken] == ("unresolved", 3 * 370_000)
    assert found[ended] == ("ok", 4 * 370_000)
    assert found[silent] == ("unresolved", 0)
    assert town.rows(Reservation)[0].cum_gross_micro == 8 * 370_000
    town.check()


def test_two_nodes_journals_are_ingested_side_by_side(town):
    town.voucher(5_000)
    town.subscribe()
    first, second = town.node("n1"), town.node("n2")
    first.call(count=50)
    second.call(count=50)
    ingest = Ingest(town.engine, town.folder)
    ingest.flush()
    assert len(town.rows(Usage)) == 100
    assert town.rows(Reservation)[0].posted_gross_fen == 37
    first.stop()
    second.stop()
    town.check()


def test_sealed_epochs_are_not_read_any_more(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call()
    node.stop()
    path = segment_path(town.folder, "n1", 1)
    path.unlink()
    Ingest(town.engine, town.folder).flush()
    assert len(town.rows(Usage)) == 1


def test_a_batch_that_another_process_took_is_left_alone(town):
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=4)
    segment = read_segment(segment_path(town.folder, "n1", 1))
    node.flush()
    node.ingest._take("n1", 1, 0, segment)
    assert len(town.rows(Usage)) == 4
    assert node.ingest.progress.duplicates == 0


def test_months_are_shanghai_s(town):
    subscription = town.subscribe(0, on_voucher_end="self_pay")
    node = town.node()
    town.now = start_of_day_ms(date(2027, 2, 1)) - 3_600_000  # 23:00 on 31 January in Shanghai
    node.call()
    town.now += 3_600_000
    node.call()
    node.flush()
    with transaction(town.engine) as session:
        months = session.exec(select(SelfPayMeter.month).where(SelfPayMeter.subscription_id == subscription)).all()
    assert sorted(months) == ["", "2027-01", "2027-02"]
