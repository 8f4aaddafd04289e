"""A claim's pack is written as it is read: the same bytes as one made whole in memory, in memory that does not grow."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import tracemalloc
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import Session, col, select

import serving.leases
from marketplace.catalogue.tables import PriceVersion
from marketplace.claims.batches import lines_of
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer
from marketplace.clock import now_ms, policy_date
from marketplace.db import snapshot, transaction
from marketplace.integrity import json_stream, opened, pack
from marketplace.integrity import verify_journals as verify_journals_module
from marketplace.integrity.chain import canonical, segment_leaf
from marketplace.integrity.days import day_facts, facts_of, leaf_of, leaves_of, list_days
from marketplace.integrity.json_stream import JsonStream
from marketplace.integrity.merkle import proof_of
from marketplace.integrity.opened import COLUMNS
from marketplace.integrity.pack import write_pack
from marketplace.integrity.records import Records
from marketplace.integrity.segments import segments_of
from marketplace.integrity.tables import JournalSegment
from marketplace.integrity.verify import FORMAT, Report, verify_pack
from marketplace.integrity.verify_journals import verify_journals
from marketplace.keys.service import create_key, scopes_of_kind
from marketplace.ledger import posting
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.organisations.members import add_member
from marketplace.organisations.tables import Organisation
from marketplace.usage import recovery
from marketplace.usage.tables import Usage
from model_store.blobs import FolderBlobs
from tests.marketplace.stores import on_both_stores
from tests.marketplace.test_claims import freeze, new_batch
from tests.marketplace.test_integrity import changed, close, packed
from tests.marketplace.town import DAY, Town

MADE_AT = 1_900_000_000_000


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("frozen", "client", "memory"))


@pytest.fixture
def town(engine, tmp_path, monkeypatch):
    town = Town(engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    monkeypatch.setattr(posting, "now_ms", lambda: town.now)
    monkeypatch.setattr(recovery, "now_ms", lambda: town.now)
    monkeypatch.setattr(pack, "now_ms", lambda: MADE_AT)
    return town


def live_through(town: Town, blobs: FolderBlobs, days: int = 4, charges: int = 3, calls: int = 12) -> str:
    """Two nodes, one of which seals its journal; on each day some charges of some calls. Answers a frozen batch,
    whose last day is not closed."""
    town.voucher(5_000)
    town.subscribe(contract_fen=100_000)
    first, second = town.node("n1"), town.node("n2")
    for day in range(days):
        for _ in range(charges):
            first.call(count=calls)
            first.flush()
        second.call(count=calls)
        second.flush()
        if day == 1:
            second.stop()
            second = town.node("n2")
        if day < days - 1:
            town.now += DAY + 7_200_000
            close(town)
    first.stop()
    second.stop()
    batch = new_batch(town)
    freeze(town, blobs, batch)
    return batch


def whole(session: Session, batch: ClaimBatch, blobs: FolderBlobs) -> bytes:
    """The pack as its format is told: every member whole, in memory."""
    lines = [line.id for line in lines_of(session, batch) if line.state in ("in_batch", "accepted")]
    claimed = select(ClaimedTransfer.transfer_id).where(col(ClaimedTransfer.line_id).in_(lines))
    transfers = sorted(session.exec(claimed))
    usage = session.exec(select(Usage).where(col(Usage.transfer_id).in_(transfers))).all()
    rows = sorted(usage, key=lambda row: row.usage_id)
    files = {
        "claim.json": blobs.path(batch.sha256).read_bytes(),
        "transfers.jsonl": b"".join(leaf(session, key) + b"\n" for key in transfers),
        "usage.csv": as_csv(session, rows),
        "proofs.json": canonical({str(key): proof(session, session.get_one(LedgerTransfer, key)) for key in transfers}),
        "segments.json": canonical(chosen(session, rows)),
        "payment.json": b'{"paid":false}',
        "days.json": canonical([day_facts(row) for row in list_days(session)]),
    }
    manifest = {
        "format": FORMAT, "batch": batch.id, "claim_sha256": batch.sha256, "state": batch.state,
        "total_fen": batch.total_fen, "lines": lines, "made_at_ms": MADE_AT,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("manifest.json", canonical(manifest)), *sorted(files.items())):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def leaf(session: Session, key: int) -> bytes:
    query = select(LedgerEntry).where(LedgerEntry.transfer_id == key).order_by(col(LedgerEntry.line))
    entries = [(entry.account, entry.amount_fen) for entry in session.exec(query)]
    return leaf_of(session.get_one(LedgerTransfer, key), entries)


def proof(session: Session, of: LedgerTransfer | JournalSegment) -> dict[str, Any] | None:
    at_ms = of.posted_at_ms if isinstance(of, LedgerTransfer) else of.recorded_at_ms
    day = policy_date(at_ms)
    if day.isoformat() not in {row.day for row in list_days(session)}:
        return None
    leaves = leaves_of(session, day)
    if isinstance(of, LedgerTransfer):
        index = leaves.transfers.index(of.id or 0)
    else:
        index = len(leaves.transfers) + leaves.segments.index((of.node, of.epoch, of.kind, of.bytes))
    path = [each.hex() for each in proof_of(leaves.hashes, index)]
    return {"day": day.isoformat(), "index": index, "size": len(leaves.hashes), "path": path}


def as_csv(session: Session, rows: list[Usage]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        price = session.get_one(PriceVersion, row.price_version)
        more = {"unit": price.unit, "units": row.units[price.unit], "micro_per_unit": price.micro_per_unit}
        more |= {"correction": "", "correction_transfer": ""}
        writer.writerow([(row.model_dump() | more)[name] for name in COLUMNS])
    return buffer.getvalue().encode()


def chosen(session: Session, rows: list[Usage]) -> list[dict[str, Any]]:
    """Of each record the first segment that has it, the proved ones before the others, each of them shortest first."""
    seqs: dict[tuple[str, int], set[int]] = defaultdict(set)
    for row in rows:
        seqs[row.node, row.epoch].add(row.seq)
    found = []
    for (node, epoch), wanted in sorted(seqs.items()):
        known = [(each, proof(session, each)) for each in segments_of(session, node, epoch)]
        known.sort(key=lambda each: each[1] is None)
        spans = [(each.first_seq, each.last_seq) for each, _ in known]
        having = [[at for at, (first, last) in enumerate(spans) if first <= seq <= last] for seq in wanted]
        for at in sorted({places[0] for places in having if places}):
            segment, path = known[at]
            found.append({"leaf": segment_leaf(facts_of(segment)).decode(), "proof": path})
    return found


@pytest.mark.parametrize("page", [1, 3, 1_000])
def test_it_has_the_bytes_of_one_made_whole_in_memory_whatever_the_page(town, blobs, tmp_path, monkeypatch, page):
    monkeypatch.setattr(pack, "PAGE", page)
    batch = live_through(town, blobs)
    with snapshot(town.engine) as session:
        row = session.get_one(ClaimBatch, batch)
        expected = whole(session, row, blobs)
        made = write_pack(session, row, blobs, tmp_path / "pack.zip").read_bytes()
        again = write_pack(session, row, blobs, tmp_path / "pack.zip").read_bytes()
    assert made == again == expected
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        proofs = json.loads(archive.read("proofs.json"))
        assert len(json.loads(archive.read("segments.json"))) > 3
    assert list(proofs) == sorted(proofs) != sorted(proofs, key=int)  # of different lengths: sorted as text
    assert None in proofs.values()
    report = verify_pack(tmp_path / "pack.zip")
    verify_journals(tmp_path / "pack.zip", town.folder, report)
    assert report.wrong == []
    assert report.facts["usage_records"] == len(town.rows(Usage)) == 192
    assert report.facts["usage_found_in_journals"] == 192  # once, although a journal's segments begin alike
    assert 0 < report.facts["usage_in_proved_journals"] < 192


# --- a frozen batch ---------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(town, blobs) -> str:
    return live_through(town, blobs, days=2)


def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(town, blobs, tmp_path, frozen, monkeypatch):
    folder = tmp_path / "packs"
    folder.mkdir()
    target = packed(town, blobs, frozen, folder / "pack.zip")
    before = target.read_bytes()

    def stop(*_: Any) -> None:
        raise OSError("no space left on device")

    for step in ("_take_usage", "_segments", "_zip"):
        monkeypatch.undo()
        monkeypatch.setattr(pack, step, stop)
        with pytest.raises(OSError, match="no space"):
            packed(town, blobs, frozen, target)
        assert target.read_bytes() == before
        with pytest.raises(OSError, match="no space"):
            packed(town, blobs, frozen, folder / "other.zip")
        assert list(folder.iterdir()) == [target]


def test_its_parts_are_compressed_apart_and_read_by_any_zip_program(town, blobs, tmp_path, frozen):
    target = packed(town, blobs, frozen, tmp_path / "pack.zip")
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert [info.compress_type for info in archive.infolist()] == [zipfile.ZIP_DEFLATED] * 8


def test_an_operator_downloads_it_and_no_copy_is_left(market, client, monkeypatch):
    town = Town(market.engine, market.settings.home / "journal", settings=market.settings)
    for module in (serving.leases, posting, recovery):
        monkeypatch.setattr(module, "now_ms", lambda: town.now)
    batch = live_through(town, market.blobs, days=2)
    with transaction(town.engine) as session:
        city = session.get_one(Organisation, "org_city")
        member = add_member(session, city, email="chen@x.example", name="chen", role="owner")
        scopes = scopes_of_kind("operator")
        _, key = create_key(session, city, name="k", scopes=scopes, actor="t", member_id=member.id, at_ms=now_ms())
    headers = {"Authorization": f"Bearer {key}"}
    monkeypatch.setattr(pack, "now_ms", lambda: MADE_AT)
    answer = client.get(f"/api/v1/claims/{batch}/pack", headers=headers)
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{batch}.zip"'
    path = market.settings.home / "downloaded.zip"
    path.write_bytes(answer.content)
    assert verify_pack(path).wrong == []
    assert len(answer.content) == int(answer.headers["content-length"])
    assert answer.content == packed(town, market.blobs, batch, market.settings.home / "pack.zip").read_bytes()
    assert list((market.settings.home / "tmp").iterdir()) == []
    open_one = new_batch(town)
    for wrong in (open_one, "clm_nothing"):
        answer = client.get(f"/api/v1/claims/{wrong}/pack", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "CLAIM_NOT_FOUND")
    assert client.get(f"/api/v1/claims/{batch}/pack").status_code == 401


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch) -> Callable[[Callable[[], Any]], int]:
    """`memory(act)`: bytes that Python held for it at most. Pages and chunks are small, so that they do not cover what
    would grow."""
    monkeypatch.setattr(pack, "PAGE", 20)
    monkeypatch.setattr(pack, "CHUNK", 4_096)
    monkeypatch.setattr(opened, "_CHUNK", 4_096)
    monkeypatch.setattr(json_stream, "_CHUNK", 4_096)
    monkeypatch.setattr(verify_journals_module, "PORTION", 20)

    def peak(act: Callable[[], Any]) -> int:
        act()  # what is compiled and cached is there from now on
        gc.collect()
        tracemalloc.start()
        try:
            act()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return peak


def test_memory_does_not_grow_with_usage_and_transfers(town, blobs, tmp_path, memory):
    """Thirty times the usage and ten times the transfers. (Writing grew fifteenfold, judging more, when each was
    made in memory.)"""
    peaks: dict[str, list[int]] = {"write": [], "verify": [], "journals": []}
    town.voucher(400_000)
    town.subscribe(contract_fen=400_000)
    for charges, calls in ((4, 25), (40, 75)):
        node = town.node("n1")
        for _ in range(charges):
            node.call(count=calls)
            node.flush()
        node.stop()
        town.pass_days(2)
        close(town)
        batch = new_batch(town)
        freeze(town, blobs, batch)
        target = tmp_path / f"{batch}.zip"
        peaks["write"].append(memory(lambda batch=batch, target=target: packed(town, blobs, batch, target)))
        peaks["verify"].append(memory(lambda target=target: verify_pack(target)))
        peaks["journals"].append(memory(lambda target=target: verify_journals(target, town.folder, Report())))
        report = verify_pack(target)
        assert report.wrong == []
        assert (report.facts["transfers"], report.facts["usage_records"]) == (charges, charges * calls)
    for what, (small, large) in peaks.items():
        assert large < 1.5 * small, (what, peaks)


# --- what is judged ---------------------------------------------------------------------------------------------------


def test_a_byte_flipped_anywhere_in_the_archive_itself_raises_nothing(town, blobs, tmp_path, frozen):
    target = packed(town, blobs, frozen, tmp_path / "pack.zip")
    content = target.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 150)):
        target.write_bytes(content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :])
        report = verify_pack(target)
        verify_journals(target, town.folder, report)  # raises nothing; a time stamp of the archive may be another


def test_what_no_line_claims_may_not_be_in_a_pack(town, blobs, tmp_path, frozen):
    target = packed(town, blobs, frozen, tmp_path / "pack.zip")
    with zipfile.ZipFile(target) as archive:
        row = archive.read("usage.csv").decode().splitlines()[1].split(",")
        first = archive.read("transfers.jsonl").splitlines()[0]
    row[:2] = ["01ANOTHER", "999999"]
    more = ",".join(row).encode() + b"\n"
    report = changed(target, "usage.csv", lambda content: content + more)
    assert any("records of transfers that no line claims" in wrong for wrong in report.wrong)
    other = json.loads(first) | {"id": 999_999}
    report = changed(target, "transfers.jsonl", lambda content: content + canonical(other) + b"\n")
    assert any("transfers that no line claims" in wrong for wrong in report.wrong)
    report = changed(target, "transfers.jsonl", lambda content: content + first + b"\n")
    assert any("stands twice" in wrong for wrong in report.wrong)
    report = changed(target, "proofs.json", lambda content: content.replace(b'"1', b'"2', 1))
    assert any("proofs.json: lacks" in wrong for wrong in report.wrong)


def test_two_files_of_one_name_are_no_pack(town, blobs, tmp_path, frozen):
    target = packed(town, blobs, frozen, tmp_path / "pack.zip")
    with zipfile.ZipFile(target) as archive:
        days = archive.read("days.json")
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("days.json", days)
    assert verify_pack(target).wrong == ["the archive has two files of one name"]


def test_a_claim_that_names_its_lines_twice_cannot_be_read(town, blobs, tmp_path, frozen):
    """Else a reader that takes the last would see other lines than one that takes the first."""
    target = packed(town, blobs, frozen, tmp_path / "pack.zip")
    report = changed(target, "claim.json", lambda content: content[:-1] + b',"lines":[]}')
    assert any("lines stands twice" in wrong for wrong in report.wrong)


# --- reading and keeping piece by piece -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time, however many are asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3)


def read_array(text: bytes) -> list[Any]:
    stream = JsonStream(Trickle(text))
    found = list(stream.items())
    stream.finish()
    return found


@settings(deadline=None)
@given(st.lists(JSON, max_size=5), st.sampled_from([None, 1]), st.data())
def test_json_read_item_by_item_is_what_the_whole_is(document, indent, data):
    text = json.dumps(document, ensure_ascii=False, indent=indent).encode()
    assert read_array(text) == document
    with pytest.raises(ValueError, match=r".+"):
        read_array(text[: data.draw(st.integers(0, len(text) - 1))])


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_read_key_by_key_is_what_the_whole_is(document):
    stream = JsonStream(Trickle(json.dumps(document, ensure_ascii=False).encode()))
    assert {key: stream.value() for key in stream.keys()} == document  # noqa: SIM118  (a stream, no dict)
    stream.finish()


@pytest.mark.parametrize("text", [b"", b"[", b"[1", b"[1,]", b"[1 2]", b"[1]]", b"{}", b"[1],", b"[\xff]", b"[tru]"])
def test_what_is_no_json_array_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        read_array(text)


def test_a_value_has_a_bound(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1_000)
    with pytest.raises(ValueError, match="larger"):
        JsonStream(io.BytesIO(b'"' + b"x" * 200_000 + b'"')).value()


@settings(deadline=None)
@given(st.lists(st.binary(min_size=4, max_size=4), max_size=60), st.data())
def test_records_are_read_as_they_were_written(tmp_path_factory, written, data):
    records = Records(tmp_path_factory.getbasetemp(), 4)
    try:
        for at, each in enumerate(written):
            records.append(each)
            assert records[at] == each
        assert len(records) == len(written)
        first = data.draw(st.integers(0, len(written)))
        assert list(records.between(first, len(written))) == written[first:]
        with pytest.raises(IndexError):
            records[len(written)]
        with pytest.raises(ValueError, match="not 4"):
            records.append(b"five!")
    finally:
        records.close()


def test_records_of_several_portions_are_read_in_order(tmp_path):
    records = Records(tmp_path, 8)
    for number in range(5_000):
        records.append(number.to_bytes(8))
    assert [int.from_bytes(each) for each in records.between(10, 4_990)] == list(range(10, 4_990))
    records.close()
    assert list(Path(tmp_path).iterdir()) == []
