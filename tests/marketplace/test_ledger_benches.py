"""What the ledger's benches measure, small: every call is charged, every rebuild agrees, every flipped byte is seen."""

from dataclasses import asdict

from marketplace.integrity.verify import verify_pack
from tests.bench.bench_claims import bench_claims, faults_of
from tests.bench.bench_ledger import ingest_alone, metering, stranded, through
from tests.bench.bench_rebuild import bench_rebuild


def test_what_serving_processes_write_is_charged_by_the_ingest_process():
    told = through("sqlite", 2, 400, rate=400)  # raises where a call is not charged, or the books do not balance
    assert told["calls"] == 400
    assert told["leases_asked"] >= 2
    assert 0 <= told["visible_p50_s"] <= told["visible_p99_s"]


def test_ingest_charges_the_journals_of_four_nodes_on_one_reservation():
    assert ingest_alone("sqlite", 4, 400)["ingested_per_s"] > 0


def test_at_exhaustion_each_node_strands_less_than_one_call():
    told = stranded(3, face_fen=60)
    assert told["stranded_fen"] <= 3  # a call's share is an eighth of a fen, and a fen is the least a node holds
    assert told["in_leases_after_end_fen"] <= 1


def test_the_parts_of_metering_are_told_apart():
    told = metering(calls=500)
    assert 0 < told["rate_us"] < told["whole_call_us"]


def test_a_ledger_is_rebuilt_to_the_same_state_whatever_the_order(tmp_path):
    told = bench_rebuild(tmp_path, records=1_200, enterprises=7)
    assert told["faults"] == []
    assert told["in_order"]["entries"] == told["shuffled"]["rebuilt"]["entries"] > 1_200


def test_a_few_days_of_trade_are_claimed_and_no_flipped_byte_goes_unseen():
    def verify(pack):
        report = verify_pack(pack)
        return int(not report.holds), asdict(report)

    told = bench_claims(6, 3, seed=1, active=0.9, calls=5, verify=verify)
    assert faults_of(told) == []
    assert [each["lines"] for each in told["claims"]] == [4, 2]
    assert all(each["flipped"] >= 6 for each in told["claims"])
