"""Day roots and packs: what was posted can be proved without the market, and no change of it goes unseen."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.leases
from marketplace.claims import charged
from marketplace.claims.tables import ClaimBatch
from marketplace.clock import policy_date
from marketplace.db import reading, snapshot, transaction
from marketplace.integrity.days import PATIENCE_MS, check_days, close_days, is_due, leaves_of
from marketplace.integrity.merkle import leaf_hash, proof_of, root_by, root_of
from marketplace.integrity.pack import write_pack
from marketplace.integrity.segments import record_prefixes
from marketplace.integrity.tables import DayRoot, JournalSegment
from marketplace.integrity.verify import Report, verify_pack
from marketplace.integrity.verify_amounts import MICRO, Used, verify_amounts
from marketplace.integrity.verify_journals import verify_journals
from marketplace.ledger import posting
from marketplace.usage import recovery
from marketplace.usage.replay import replay
from marketplace.vouchers.tables import NodeEpoch
from model_store.blobs import FolderBlobs
from serving.journal import segment_path
from tests.marketplace.stores import on_both_stores, unguarded
from tests.marketplace.test_claims import (
    advance,
    batch_of,
    correct,
    freeze,
    new_batch,
    one_by_one,
    one_fen_calls,
    trade,
)
from tests.marketplace.town import DAY, Town


def test_packs_of_charges_without_subsidy_hold_wherever_their_corrections_stand(town, blobs, tmp_path):
    """The later day is claimed first, with a correction of the day before; then that day."""
    one_fen_calls(town)
    first = policy_date(town.now).isoformat()
    node = one_by_one(town, "n1", 6)
    town.now += DAY
    second = policy_date(town.now).isoformat()
    one_by_one(town, "n2", 6)
    correct(town, node.acknowledged[0].usage_id)
    town.now += 2 * DAY
    close(town)
    totals = []
    for number, day in enumerate((second, first)):
        batch = batch_of(town, day, day)
        freeze(town, blobs, batch)
        report = verify_pack(packed(town, blobs, batch, tmp_path / f"{number}.zip"))
        assert report.wrong == []
        totals.append((report.facts["total_fen"], report.facts["usage_records"]))
    assert totals == [(1, 6), (2, 5)]


def test_a_batch_of_before_charges_without_subsidy_were_claimed_still_holds(town, blobs, tmp_path):
    one_fen_calls(town)
    one_by_one(town, "n1", 30)
    town.now += 2 * DAY
    close(town)
    batch = new_batch(town)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(charged, "_shared", lambda session, transfer_ids: set())
        row = freeze(town, blobs, batch)
    report = verify_pack(packed(town, blobs, batch, tmp_path / "pack.zip"))
    assert report.wrong == []
    assert (report.facts["total_fen"], report.facts["usage_records"]) == (10, 10)
    assert report.facts["claim_sha256"] == row.sha256


def wrong_of(amounts: list[tuple[int, int]], eligible_fen: int) -> list[str]:
    """What `verify_amounts` says of a line at a third with these charges (gross, subsidy)."""
    charges = [
        {"id": at, "kind": "P5", "gross_fen": gross, "subsidy_fen": fen} for at, (gross, fen) in enumerate(amounts)
    ]
    said: list[str] = []
    used = Used(micro=sum(gross for gross, _ in amounts) * MICRO, eligible=eligible_fen * MICRO)
    line = {"line": "cln_1", "ratio": [1, 3], "transfers": charges}
    verify_amounts(line, used, lambda holds, why: None if holds else said.append(why), is_marked=True)
    return said


def test_charges_without_subsidy_make_no_room_for_more_than_the_share():
    """Of 99 fen a third are 33; each charge with a subsidy may be off by a fen, those without by none."""
    small = [(1, 0)] * 39
    assert wrong_of([*small, (60, 34)], 99) == []
    assert wrong_of([*small, (60, 35)], 99) == ["cln_1: more than 1/3 of its usage is claimed"]


def test_no_charge_has_more_subsidy_than_gross():
    assert wrong_of([(1, 1), (1, 0), (1, 0)], 3) == []
    assert wrong_of([(1, 2), (5, 0)], 6) == ["cln_1: charge 0 is 1 fen, of it 2 subsidy"]


@settings(deadline=None)
@given(st.integers(1, 70), st.data())
def test_each_leaf_proves_its_root_and_nothing_else_does(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(str(number).encode()) for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    path = proof_of(leaves, index)
    assert root_by(leaves[index], index, size, path) == root_of(leaves)
    assert root_by(leaf_hash(b"another"), index, size, path) != root_of(leaves)
    with pytest.raises(ValueError, match="proof"):
        root_by(leaves[index], index, size, [*path, leaves[0]])


def test_a_leaf_is_no_inner_node() -> None:
    """Else a pair of hashes could be passed off as a transfer (RFC 6962, 2.1)."""
    one, two = leaf_hash(b"1"), leaf_hash(b"2")
    assert root_of([one, two]) != root_of([leaf_hash(one + two)])
    assert root_of([]) == hashlib.sha256(b"").digest()


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("pack",))


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    monkeypatch.setattr(posting, "now_ms", lambda: town.now)  # postings are of the town's day
    monkeypatch.setattr(recovery, "now_ms", lambda: town.now)  # and journals are sealed on it
    return town


def close(town: Town) -> list[DayRoot]:
    """As housekeeping does it."""
    with reading(town.engine) as session:
        due = is_due(session, town.now)
    if due:
        record_prefixes(town.engine, town.folder, town.now)
    with transaction(town.engine) as session:
        return close_days(session, town.now)


def test_days_are_closed_in_a_row_and_none_before_it_is_over(town):
    trade(town)
    assert close(town) == []
    town.pass_days(3)
    closed = close(town)
    assert len(closed) == 3
    assert closed[0].transfers > 0
    assert [row.transfers for row in closed[1:]] == [0, 0]
    assert len({row.chain for row in closed}) == 3
    assert close(town) == []
    with reading(town.engine) as session:
        assert check_days(session) == []


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE ledger_entry SET amount_fen = amount_fen * 2",
        "UPDATE ledger_transfer SET occurred_at_ms = occurred_at_ms + 1 WHERE id = 1",
        "DELETE FROM ledger_entry WHERE transfer_id = 2",
        "UPDATE day_root SET transfers = transfers + 1",
        "UPDATE day_root SET layout = 1, segments = 0",
        "UPDATE journal_segment SET sha256 = '00'",
        "DELETE FROM journal_segment",
    ],
)
def test_a_ledger_changed_behind_its_triggers_no_longer_fits_its_days(town, forgery):
    trade(town)
    town.pass_days(2)
    close(town)
    unguarded(town.engine, forgery)
    with reading(town.engine) as session:
        assert check_days(session)


# --- the pack ---------------------------------------------------------------------------------------------------------


def packed(town: Town, blobs: FolderBlobs, batch: str, target: Path) -> Path:
    with snapshot(town.engine) as session:
        return write_pack(session, session.get_one(ClaimBatch, batch), blobs, target)


@pytest.fixture
def pack(town, blobs, tmp_path) -> Path:
    return pack_of_two_days(town, blobs, tmp_path / "pack.zip")


def pack_of_two_days(town: Town, blobs: FolderBlobs, target: Path) -> Path:
    """Of a batch of charges of 15 and 16 January, both closed; frozen on the 18th."""
    trade(town)
    town.now += DAY
    node = town.node("n2")
    node.call(count=50)
    node.stop()
    town.now += 2 * DAY
    close(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    return packed(town, blobs, batch, target)


def changed(pack: Path, name: str, change: Callable[[bytes], bytes], *, resealed: bool = True) -> Report:
    """The pack with one file changed; `resealed`: by a forger who names its new hash in the manifest."""
    with zipfile.ZipFile(pack) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    assert files[name] != change(files[name])
    files[name] = change(files[name])
    if resealed and name != "manifest.json":
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, content in files.items():
            archive.writestr(each, content)
    path = pack.with_name("changed.zip")
    path.write_bytes(buffer.getvalue())
    return verify_pack(path)


def as_json(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    return apply


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_pack_holds_by_itself(pack):
    report = verify_pack(pack)
    assert report.wrong == []
    assert report.facts["usage_records"] == 150
    assert report.facts["total_fen"] == 18
    assert report.facts["transfers"] == report.facts["transfers_in_closed_days"] == 2
    assert report.facts["journal_segments"] == report.facts["journal_segments_in_closed_days"] == 2
    assert report.facts["usage_in_proved_journals"] == 150
    assert report.facts["usage_without_a_recorded_filing"] == 0


@pytest.mark.parametrize(
    "name", ["claim.json", "transfers.jsonl", "usage.csv", "proofs.json", "segments.json", "payment.json", "days.json"]
)
def test_one_flipped_byte_is_seen(pack, name):
    with zipfile.ZipFile(pack) as archive:
        size = len(archive.read(name))
    for at in range(0, size, max(1, size // 25)):
        assert not changed(pack, name, flipped(at), resealed=False).holds, at


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("usage.csv", lambda content: content.replace(b",370000,", b",370001,", 1)),
        ("usage.csv", lambda content: b"\n".join(content.split(b"\n")[:-2]) + b"\n"),
        ("usage.csv", lambda content: content + content.split(b"\n")[1] + b"\n"),
        ("transfers.jsonl", lambda content: content.replace(b'"kind":"P5"', b'"kind":"P1"', 1)),
        ("transfers.jsonl", lambda content: b"\n".join(content.split(b"\n")[1:])),
        ("transfers.jsonl", lambda content: content.replace(b'"posted_at_ms":1', b'"posted_at_ms":2', 1)),
        ("claim.json", as_json(lambda document: document["lines"][0].update(subsidy_fen=19))),
        ("claim.json", as_json(lambda document: document["lines"][0]["transfers"].pop())),
        ("days.json", as_json(lambda days: days[0].update(root="0" * 64))),
        ("days.json", as_json(lambda days: days.pop(0))),
        ("proofs.json", as_json(lambda proofs: next(iter(proofs.values())).update(index=1, size=2))),
        (
            "segments.json",
            as_json(lambda segments: segments[0].update(leaf=segments[0]["leaf"].replace('"sha256":"', '"sha256":"0'))),
        ),
        (
            "segments.json",
            as_json(lambda segments: segments[0].update(leaf=segments[0]["leaf"].replace("segment/1", "segment/2"))),
        ),
        ("segments.json", as_json(lambda segments: segments[0]["proof"].update(day=segments[1]["proof"]["day"]))),
        ("days.json", as_json(lambda days: days[0].update(layout=1))),
        ("days.json", as_json(lambda days: days[0].update(layout=9))),
        ("manifest.json", as_json(lambda manifest: manifest.update(total_fen=19))),
        ("usage.csv", lambda content: content.replace(b",flg_1,", b",,", 1)),
        ("usage.csv", lambda content: content.replace(b",flg_1,", b",flg_2,", 1)),
        ("usage.csv", lambda content: content.replace(b",flg_1,", b",flg_2,")),
        ("claim.json", as_json(lambda document: document["lines"][0]["filings"].clear())),
        ("claim.json", as_json(lambda document: document["lines"][0].pop("filings"))),
        ("claim.json", as_json(lambda document: document["lines"][0]["filings"][0].update(valid_from="2027-01-16"))),
    ],
)
def test_a_forger_who_seals_the_pack_again_is_seen(pack, name, change):
    assert not changed(pack, name, change).holds


def test_a_record_whose_filing_was_not_valid_when_it_was_used_is_named(pack):
    """However it came to be claimed: here a filing whose days, as frozen, end before the second day's calls."""
    ended = as_json(lambda document: document["lines"][0]["filings"][0].update(valid_until="2027-01-15"))
    (wrong,) = [each for each in changed(pack, "claim.json", ended).wrong if "filing" in each]
    assert "演示-不是备案号-1 was not valid when" in wrong


def test_of_usage_from_before_filings_were_recorded_it_is_told_that_there_is_none(town, blobs, tmp_path):
    trade(town)
    unguarded(town.engine, "UPDATE usage SET filing_id = NULL")
    batch = new_batch(town)
    freeze(town, blobs, batch)
    report = verify_pack(packed(town, blobs, batch, tmp_path / "pack.zip"))
    assert (report.wrong, report.facts["usage_without_a_recorded_filing"]) == ([], 100)


def test_a_pack_from_before_filings_were_recorded_still_holds(pack):
    def older(document: dict[str, Any]) -> None:
        for line in document["lines"]:
            del line["filings"], line["filing_required"]
        document["format"] = "algomart-claim/1"

    with zipfile.ZipFile(pack) as archive:
        table = archive.read("usage.csv").replace(b",filing_id,", b",").replace(b",flg_1,", b",")
        document = as_json(older)(archive.read("claim.json"))
        files = {each: archive.read(each) for each in archive.namelist()} | {"usage.csv": table, "claim.json": document}
    manifest = json.loads(files.pop("manifest.json"))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest |= {"files": sums, "claim_sha256": sums["claim.json"]}
    path = pack.with_name("older.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("manifest.json", json.dumps(manifest).encode()), *files.items()):
            archive.writestr(name, content)
    report = verify_pack(path)
    assert (report.wrong, report.facts["usage_without_a_recorded_filing"]) == ([], 150)


def test_what_is_no_pack_is_said_to_be_none(tmp_path):
    for content in (b"", b"PK", b"not a zip at all"):
        path = tmp_path / "x.zip"
        path.write_bytes(content)
        assert not verify_pack(path).holds


def test_a_returned_line_is_in_no_pack_any_more(town, blobs, tmp_path):
    trade(town)
    batch = new_batch(town)
    freeze(town, blobs, batch)
    advance(town, batch, "submit", "return")
    path = packed(town, blobs, batch, tmp_path / "pack.zip")
    report = verify_pack(path)
    assert report.wrong == []
    assert (report.facts["lines"], report.facts["total_fen"]) == (0, 0)


# --- corrections under it ---------------------------------------------------------------------------------------------


def corrected(town: Town, blobs: FolderBlobs, target: Path, *, forget: bool = False) -> Path:
    """100 calls of one day, 60 of them taken back on the next, 100 more; a batch of the first day. `forget`: made as
    before corrections went with their charges."""
    node = trade(town)
    first = policy_date(town.now).isoformat()
    town.now += DAY
    for record in node.acknowledged[:60]:
        correct(town, record.usage_id)
    later = town.node("n2")
    later.call(count=100)
    later.stop()
    town.now += 2 * DAY
    close(town)
    batch = batch_of(town, first, first)
    with pytest.MonkeyPatch.context() as patched:
        if forget:
            patched.setattr(charged, "_corrections", lambda session, reservations: {})
        freeze(town, blobs, batch)
    return packed(town, blobs, batch, target)


def test_a_pack_marks_what_was_corrected_and_its_line_is_judged_by_what_is_left(town, blobs, tmp_path):
    pack = corrected(town, blobs, tmp_path / "pack.zip")
    report = verify_pack(pack)
    assert report.wrong == []
    assert report.facts["total_fen"] == 4
    assert report.facts["usage_records"] == 100
    with zipfile.ZipFile(pack) as archive:
        rows = list(csv.DictReader(archive.read("usage.csv").decode().splitlines()))
        (line,) = json.loads(archive.read("claim.json"))["lines"]
    marked = {row["correction"]: row["correction_transfer"] for row in rows if row["correction"]}
    assert len(marked) == 60
    taken = {str(each["id"]) for each in line["transfers"] if each["kind"] == "P13"}
    assert {transfer for transfer in marked.values() if transfer} == taken


def test_a_line_that_claims_what_was_corrected_does_not_hold(town, blobs, tmp_path):
    report = verify_pack(corrected(town, blobs, tmp_path / "pack.zip", forget=True))
    assert report.facts["total_fen"] == 12
    assert any("which is not taken off" in wrong for wrong in report.wrong)
    assert any("37 fen are left" in wrong for wrong in report.wrong)
    assert any("more than 1/3" in wrong for wrong in report.wrong)


def test_what_a_forger_does_to_the_marks_is_seen(town, blobs, tmp_path):
    pack = corrected(town, blobs, tmp_path / "pack.zip")
    with zipfile.ZipFile(pack) as archive:
        rows = archive.read("usage.csv").decode().splitlines()
    posted = next(row for row in rows[1:] if not row.endswith(","))
    clean = next(row for row in rows[1:] if row.endswith(",,"))
    *facts, correction, transfer = posted.split(",")
    plain = ",".join([*facts, "", ""])
    for old, new in (
        (posted, plain),
        (posted, ",".join([*facts, correction, ""])),
        (posted, ",".join([*facts, "", transfer])),
        (posted, ",".join([*facts, correction, "1"])),
        (clean, clean[:-2] + f",cor_x,{transfer}"),
        (clean, clean[:-2] + ",cor_x,999999"),
    ):
        report = changed(
            pack, "usage.csv", lambda content, old=old, new=new: content.replace(old.encode(), new.encode())
        )
        assert not report.holds, new


def test_a_forger_who_takes_corrections_out_of_the_claim_is_seen(town, blobs, tmp_path):
    pack = corrected(town, blobs, tmp_path / "pack.zip")

    def without(document: dict[str, Any]) -> None:
        (line,) = document["lines"]
        line["transfers"] = [each for each in line["transfers"] if each["kind"] == "P5"]
        for part in ("gross_fen", "subsidy_fen"):
            line[part] = sum(each[part] for each in line["transfers"])

    report = changed(pack, "claim.json", as_json(without))
    assert any("fen are left" in wrong for wrong in report.wrong)
    more = changed(pack, "claim.json", as_json(lambda document: _more(document["lines"][0])))
    assert any("takes nothing back" in wrong for wrong in more.wrong)


def _more(line: dict[str, Any]) -> None:
    taken = next(each for each in line["transfers"] if each["kind"] == "P13")
    taken["gross_fen"] = 1


def test_a_pack_of_before_the_marks_is_held_to_its_charges(town, blobs, tmp_path):
    """Its lines with corrections were not judged at all."""
    pack = corrected(town, blobs, tmp_path / "pack.zip")
    with zipfile.ZipFile(pack) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    del files["payment.json"]
    rows = [row.rsplit(b",", 2)[0] for row in files["usage.csv"].splitlines()]
    for usage, holds in ((rows, True), ([row.replace(b",subsidised,", b",self_pay,") for row in rows], False)):
        files["usage.csv"] = b"\n".join(usage) + b"\n"
        manifest = json.loads(files["manifest.json"]) | {"format": "algomart-pack/2"}
        manifest["files"].pop("payment.json", None)
        manifest["files"]["usage.csv"] = hashlib.sha256(files["usage.csv"]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
        path = tmp_path / "written.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        report = verify_pack(path)
        assert report.holds == holds, report.wrong


# --- the journals under it --------------------------------------------------------------------------------------------


def test_a_sealed_journal_is_a_leaf_of_the_day_it_was_sealed_on(town):
    trade(town)
    (segment,) = town.rows(JournalSegment)
    day = policy_date(town.now)
    assert (segment.kind, segment.count, segment.last_seq) == ("sealed", 100, 100)
    assert segment.sha256 == town.rows(NodeEpoch)[0].sha256
    town.pass_days(2)
    closed = close(town)
    assert (closed[0].day, closed[0].layout, closed[0].segments) == (day.isoformat(), 2, 1)
    with reading(town.engine) as session:
        assert len(leaves_of(session, day).hashes) == closed[0].transfers + 1


def test_a_journal_that_is_still_written_is_proved_up_to_each_closing(town, blobs, tmp_path):
    """A market that runs for months seals its journal once in months."""
    town.voucher(5_000)
    town.subscribe()
    node = town.node()
    node.call(count=60)
    node.flush()
    town.pass_days(1)
    node.call(count=40)
    node.flush()
    town.now += 2 * PATIENCE_MS + DAY
    assert len(close(town)) == 2
    (prefix,) = town.rows(JournalSegment)
    assert (prefix.kind, prefix.last_seq) == ("prefix", 100)
    town.now += DAY
    close(town)  # the day that the prefix was recorded on
    batch = new_batch(town)
    freeze(town, blobs, batch)
    path = packed(town, blobs, batch, tmp_path / "pack.zip")
    node.call(count=5)  # what is written since changes nothing of what was recorded
    report = verify_pack(path)
    verify_journals(path, town.folder, report)
    assert report.wrong == []
    assert report.facts["usage_in_proved_journals"] == report.facts["usage_found_in_journals"] == 100
    with reading(town.engine) as session:
        assert (
            replay(session, segment_path(town.folder, "n1", node.epoch)).prefixes == 1
        )  # nothing new by the second closing
        assert check_days(session) == []
    node.journal.close()


def test_a_day_of_the_first_layout_still_fits_and_goes_on_in_the_chain(town):
    """Closed before segments were leaves: its root is over its transfers alone, and so is its line in the chain."""
    trade(town)
    day = policy_date(town.now)
    with transaction(town.engine) as session:
        root = root_of(leaves_of(session, day, layout=1).hashes).hex()
        transfers = len(leaves_of(session, day, layout=1).transfers)
        chain = hashlib.sha256(f"{'0' * 64}\n{day}\n{transfers}\n{root}\n".encode()).hexdigest()
        session.add(DayRoot(day=day.isoformat(), transfers=transfers, root=root, chain=chain, closed_at_ms=town.now))
    town.pass_days(3)
    assert [row.layout for row in close(town)] == [2, 2]
    with reading(town.engine) as session:
        assert check_days(session) == []


def as_first_format(pack: Path) -> Path:
    """What a market of the first format would have written: no segments, days of layout 1."""
    with zipfile.ZipFile(pack) as archive:
        newer = ("segments.json", "payment.json")
        files = {info.filename: archive.read(info) for info in archive.infolist() if info.filename not in newer}
    leaves, days, proofs, chain = files["transfers.jsonl"].splitlines(), [], {}, "0" * 64
    for leaf in leaves:
        day = policy_date(json.loads(leaf)["posted_at_ms"]).isoformat()
        root = leaf_hash(leaf).hex()
        chain = hashlib.sha256(f"{chain}\n{day}\n1\n{root}\n".encode()).hexdigest()
        days.append({"day": day, "transfers": 1, "root": root, "chain": chain})
        proofs[str(json.loads(leaf)["id"])] = {"day": day, "index": 0, "size": 1, "path": []}
    files |= {"days.json": json.dumps(days).encode(), "proofs.json": json.dumps(proofs).encode()}
    manifest = json.loads(files.pop("manifest.json"))
    manifest |= {"format": "algomart-pack/1", "files": {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}}
    path = pack.with_name("old.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("manifest.json", json.dumps(manifest).encode()), *files.items()):
            archive.writestr(name, content)
    return path


def test_a_pack_of_the_first_format_still_holds(pack):
    report = verify_pack(as_first_format(pack))
    assert report.wrong == []
    assert report.facts["transfers_in_closed_days"] == 2
    assert report.facts["journal_segments"] == 0


def test_the_journals_own_bytes_are_held_against_the_pack(pack, town):
    report = verify_pack(pack)
    verify_journals(pack, town.folder, report)
    assert report.wrong == []
    assert (report.facts["journal_files_held"], report.facts["usage_found_in_journals"]) == (2, 150)


def test_a_journal_that_was_changed_after_its_hash_was_taken_is_named(pack, town):
    path = sorted(town.folder.glob("*.alj"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = verify_pack(pack)
    verify_journals(pack, town.folder, report)
    assert any(path.name in wrong for wrong in report.wrong)


def test_a_usage_record_that_its_journal_does_not_have_is_named(pack, town):
    """By a forger who seals the pack again: amount and digests of one record, in document and manifest too."""
    changed(pack, "usage.csv", lambda content: content.replace(b",1,", b",9,", 1))
    report = Report()
    verify_journals(pack.with_name("changed.zip"), town.folder, report)
    assert not report.holds
