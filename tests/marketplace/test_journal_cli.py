"""`algomart journal verify` and `replay`, on journals that a node wrote and on what may become of them."""

import json

import msgspec
import pytest
from sqlmodel import select
from typer.testing import CliRunner

import serving.leases
from marketplace.cli import app
from marketplace.db import transaction
from marketplace.usage.tables import Usage
from serving.journal import ProgressEntry, StartEntry, segment_path
from serving.journal_format import frame_of
from tests.marketplace.town import Town


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    monkeypatch.setenv("LANG", "en")
    monkeypatch.delenv("LC_ALL", raising=False)
    return town


def run(*arguments):
    return CliRunner().invoke(app, ["journal", *map(str, arguments)])


def read(*arguments):
    done = run(*arguments, "--json")
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def node(town):
    town.voucher(1_000)
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    node.call(count=30)
    return node


def path_of(node):
    return segment_path(node.town.folder, node.name, node.epoch)


def test_a_sealed_journal_is_sound_and_agrees_with_the_ledger(town, node, tmp_path):
    node.stop()
    code, found = read("verify", town.folder)
    (journal,) = found["journals"]
    assert (code, journal["state"], journal["records"], journal["usage"]) == (0, "sealed", 30, 30)
    assert journal["amount_micro"] == 30 * 370_000
    assert len(journal["sha256"]) == 64
    code, found = read("replay", town.folder, "--home", tmp_path)
    (replay,) = found["journals"]
    assert (code, replay["agrees"], replay["posted"], replay["seal_agrees"]) == (0, True, 30, True)


def test_in_words_for_people(town, node, tmp_path):
    node.stop()
    told = run("replay", town.folder, "--home", tmp_path).stdout
    assert "n1-1.alj  sealed" in told
    assert "30 calls" in told
    assert "✓ posted 30" in told


def test_what_ingest_has_not_read_yet_is_missing_and_no_fault_while_the_epoch_is_open(town, node, tmp_path):
    code, found = read("replay", path_of(node), "--home", tmp_path)
    (replay,) = found["journals"]
    assert (code, replay["missing"], replay["epoch_state"], replay["agrees"]) == (0, 30, "open", True)
    node.stop()


def test_one_flipped_byte_is_told_with_its_place(town, node):
    node.stop()
    path = path_of(node)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, found = read("verify", path)
    assert code == 1
    assert found["journals"][0]["state"] == "torn"
    assert "torn at byte" in found["journals"][0]["problems"][0]


def test_a_torn_tail_is_told_and_the_records_before_it_are_counted(town, node):
    node.die()
    with path_of(node).open("ab") as file:
        file.write(b"\x40\x00\x00\x00torn")
    code, found = read("verify", path_of(node))
    assert (code, found["journals"][0]["state"], found["journals"][0]["usage"]) == (1, "torn", 30)


def test_a_record_taken_out_under_a_new_seal_is_seen_by_the_market_s_own_hash(town, node, tmp_path):
    """Whoever can write the file can seal it again; the ledger still has the hash and the charge."""
    from serving.journal import seal_segment
    from serving.journal_format import read_segment

    node.stop()
    path = path_of(node)
    segment = read_segment(path)
    keep = len(path.read_bytes()) - len(frame_of(segment.seal)) - len(frame_of(segment.entries[-1]))
    path.write_bytes(path.read_bytes()[:keep])
    seal_segment(path)
    assert read("verify", path)[0] == 0
    code, found = read("replay", path, "--home", tmp_path)
    (replay,) = found["journals"]
    assert (code, replay["seal_agrees"], replay["foreign"]) == (1, False, 1)
    assert replay["examples"]["foreign"] == [node.acknowledged[-1].usage_id]


def test_a_row_that_was_changed_and_one_that_was_taken_out_are_named(engine, town, node, tmp_path):
    node.stop()
    first, second = (record.usage_id for record in node.acknowledged[:2])
    with engine.connect() as connection:
        guards = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all()
        for guard in guards:  # as somebody with the file in hand could
            connection.exec_driver_sql(f"DROP TRIGGER {guard}")
        connection.commit()
    with transaction(engine) as session:
        session.exec(select(Usage).where(Usage.usage_id == first)).one().amount_micro = 1
        session.delete(session.exec(select(Usage).where(Usage.usage_id == second)).one())
    code, found = read("replay", town.folder, "--home", tmp_path)
    (replay,) = found["journals"]
    assert (code, replay["differing"], replay["missing"]) == (1, 1, 1)
    assert replay["examples"] == {"differing": [first], "missing": [second]}


def test_a_stream_without_an_end_is_held_against_what_it_was_settled_at(town, node, tmp_path):
    node.die()
    last = node.acknowledged[-1]

    stream = msgspec.structs.replace(last, usage_id="01STREAM", units={"calls": 9}, amount_micro=9 * 370_000)
    with path_of(node).open("ab") as file:
        file.write(frame_of(StartEntry(31, stream)) + frame_of(ProgressEntry(32, "01STREAM", {"calls": 2}, 740_000)))
    town.node("n1")
    code, found = read("replay", path_of(node), "--home", tmp_path)
    (replay,) = found["journals"]
    assert (code, replay["posted"], replay["summary"]["running"]) == (0, 31, 1)


def test_what_cannot_be_read_ends_with_2(town, tmp_path):
    assert run("verify", tmp_path / "none.alj").exit_code == 2
    (tmp_path / "foreign.alj").write_bytes(b"not a journal at all")
    code, found = read("verify", tmp_path / "foreign.alj")
    assert code == 2
    assert "header is torn" in found["unreadable"][0]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("verify", empty).exit_code == 2
