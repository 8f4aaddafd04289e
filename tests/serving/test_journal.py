"""The journal: what was appended is read back; a torn or altered tail is found, said and never skipped."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import Unavailable
from serving import journal
from serving.journal import (
    JournalUnreadable,
    JournalWriter,
    ProgressEntry,
    Segment,
    StartEntry,
    UsageEntry,
    read_segment,
    seal_segment,
    verify,
)
from serving.journal_format import FRAME, read_header
from serving.metering import UsageRecord
from tests.serving.parts import FullDisk


def record(number: int) -> UsageRecord:
    return UsageRecord(
        usage_id=f"{number:026d}",
        key_id="key_1",
        organisation="org_1",
        model="acme/steel@1",
        adapter="",
        price_version="prc_1",
        lease_id="lea_1",
        units={"calls": 1, "rows": number},
        amount_micro=number * 370_000,
        occurred_at_ms=1_732_000_000_000 + number,
        status="ok",
        request_digest="b2:00",
        response_digest="b2:11",
    )


def written(folder: Path, count: int, seal: bool = True) -> Path:
    writer = JournalWriter(folder, "node", 7)
    for number in range(count):
        writer.usage(record(number))
    writer.close(seal=seal)
    return writer.path


def usage_ids(segment: Segment) -> list[str]:
    return [entry.usage.usage_id for entry in segment.entries if isinstance(entry, UsageEntry)]


def test_what_was_appended_is_read_back_and_sealed(tmp_path: Path) -> None:
    path = written(tmp_path, 5)
    segment = read_segment(path)
    assert path.name == "node-7.alj"
    assert (segment.header.node, segment.header.epoch, segment.header.first_seq) == ("node", 7, 1)
    assert [entry.usage for entry in segment.entries if isinstance(entry, UsageEntry)] == [record(n) for n in range(5)]
    assert [getattr(entry, "seq", None) for entry in segment.entries] == [1, 2, 3, 4, 5]
    assert segment.seal is not None
    assert (segment.seal.last_seq, segment.seal.count) == (5, 5)
    assert segment.torn is None
    assert segment.next_offset == path.stat().st_size
    assert verify(path) == []


def test_a_journal_without_calls_is_sealed_too(tmp_path: Path) -> None:
    path = written(tmp_path, 0)
    assert verify(path) == []
    seal = read_segment(path).seal
    assert seal is not None
    assert (seal.last_seq, seal.count) == (0, 0)


def test_a_live_file_is_tailed_from_where_the_reader_stopped(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.usage(record(1))
    first = read_segment(writer.path)
    writer.usage(record(2), idempotency="abc")
    second = read_segment(writer.path, first.next_offset)
    writer.close()
    assert (usage_ids(first), usage_ids(second)) == ([record(1).usage_id], [record(2).usage_id])
    entry = second.entries[0]
    assert isinstance(entry, UsageEntry)
    assert (entry.seq, entry.idempotency) == (2, "abc")


def test_reading_in_portions_gives_the_same_as_reading_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, 10)
    offset, seen = 0, []
    while True:
        part = read_segment(path, offset, limit=3)
        seen += usage_ids(part)
        offset = part.next_offset
        if not part.more:
            break
    assert seen == usage_ids(read_segment(path))
    assert part.seal is not None


def test_a_stream_keeps_its_start_and_progress(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.append(StartEntry(1, record(1)))
    writer.append(ProgressEntry(2, record(1).usage_id, {"tokens_out": 9}, 90))
    with pytest.raises(ValueError, match="sequence 9"):
        writer.append(StartEntry(9, record(2)))
    writer.close()
    assert [type(entry) for entry in read_segment(writer.path).entries] == [StartEntry, ProgressEntry]


def test_records_written_together_stand_in_order(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.usages([record(number) for number in range(3)])
    writer.usage(record(3))
    writer.usages([record(4), record(5)])
    writer.close()
    segment = read_segment(writer.path)
    assert usage_ids(segment) == [record(number).usage_id for number in range(6)]
    assert [getattr(entry, "seq", None) for entry in segment.entries] == [1, 2, 3, 4, 5, 6]
    assert verify(writer.path) == []


def test_records_that_cannot_be_written_together_are_not_written_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.usage(record(0))
    with monkeypatch.context() as patch:
        patch.setattr(journal, "os", FullDisk())
        with pytest.raises(Unavailable):
            writer.usages([record(1), record(2)])
        with pytest.raises(Unavailable):
            writer.usage(record(3))
    writer.usages([record(4)])
    writer.close()
    assert usage_ids(read_segment(writer.path)) == [record(0).usage_id, record(4).usage_id]
    assert verify(writer.path) == []


def test_an_existing_epoch_is_never_written_again(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path, "node", 7)


def test_rotation_seals_the_old_epoch_and_goes_on_counting(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.usage(record(1))
    old = writer.rotate(2)
    writer.usage(record(2))
    writer.close()
    assert verify(old) == []
    assert verify(writer.path) == []
    assert read_header(writer.path)[0].first_seq == 2
    with pytest.raises(ValueError, match="not newer"):
        JournalWriter(tmp_path, "other", 5).rotate(5)


def test_nothing_is_appended_after_the_seal(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    writer.seal()
    with pytest.raises(Unavailable) as refused:
        writer.usage(record(1))
    assert refused.value.code == "JOURNAL_UNAVAILABLE"
    with pytest.raises(Unavailable):
        writer.check_ready()
    writer.close()


async def test_synced_waits_until_all_is_on_the_disk(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "node", 1)
    for number in range(300):
        writer.usage(record(number))
    await asyncio.wait_for(writer.synced(), 20)
    await asyncio.wait_for(writer.synced(), 20)
    writer.close()
    assert len(read_segment(writer.path).entries) == 300


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 5000))
def test_a_truncated_file_gives_a_prefix_and_says_so(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = written(folder, 8)
    content = path.read_bytes()
    size = min(cut, len(content))
    path.write_bytes(content[:size])
    whole = [record(number).usage_id for number in range(8)]
    try:
        segment = read_segment(path)
    except JournalUnreadable:
        length, _ = FRAME.unpack(content[: FRAME.size])
        assert size < FRAME.size + length
        return
    found = usage_ids(segment)
    assert found == whole[: len(found)]
    if size == len(content):
        assert segment.seal is not None
        return
    assert segment.seal is None
    assert segment.next_offset <= size
    assert (segment.torn is None) == (segment.next_offset == size)
    sealed = seal_segment(path)
    assert usage_ids(sealed) == found
    assert verify(path) == []
    assert seal_segment(path).seal == sealed.seal
    assert path.with_name(f"{path.name}.torn").exists() == (segment.next_offset < size)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    path = written(tmp_path_factory.mktemp("flip"), 6)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= flip
    path.write_bytes(content)
    try:
        segment = read_segment(path)
    except JournalUnreadable:
        return
    assert segment.torn is not None
    assert segment.torn.offset <= place
    assert usage_ids(segment) == [record(number).usage_id for number in range(6)][: len(segment.entries)]
    assert verify(path) != []


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(min_size=1, max_size=200))
def test_a_foreign_tail_is_torn_and_cut_at_sealing(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = written(tmp_path_factory.mktemp("tail"), 3, seal=False)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + tail)
    segment = read_segment(path)
    assert segment.torn is not None
    assert (segment.next_offset, len(segment.entries)) == (whole, 3)
    seal_segment(path)
    assert verify(path) == []


def test_zeros_after_a_power_cut_are_torn_not_empty_records(tmp_path: Path) -> None:
    path = written(tmp_path, 2, seal=False)
    path.write_bytes(path.read_bytes() + bytes(64))
    torn = read_segment(path).torn
    assert torn is not None
    assert torn.reason == "length"


def test_bytes_after_a_seal_are_said(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    path.write_bytes(path.read_bytes() + b"x")
    torn = read_segment(path).torn
    assert torn is not None
    assert torn.reason == "tail"
    assert verify(path)


def test_a_record_left_out_breaks_the_order(tmp_path: Path) -> None:
    path = written(tmp_path, 3, seal=False)
    ends = [0]
    content = path.read_bytes()
    while ends[-1] < len(content):
        ends.append(ends[-1] + FRAME.size + FRAME.unpack_from(content, ends[-1])[0])
    path.write_bytes(content[: ends[1]] + content[ends[2] :])
    torn = read_segment(path).torn
    assert torn is not None
    assert torn.reason == "order"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(100), b"x" * 5000])
def test_a_foreign_file_is_not_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.alj"
    path.write_bytes(content)
    with pytest.raises(JournalUnreadable):
        read_segment(path)


def test_a_full_disk_refuses_and_leaves_whole_records_only(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to grow the file, as a full disk does; in a child, the limit being its."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from model_store.errors import Unavailable
        from serving.journal import JournalWriter
        from tests.serving.test_journal import record
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = JournalWriter(Path(sys.argv[1]), "node", 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        done = 0
        try:
            for number in range(100):
                writer.usage(record(number))
                done += 1
        except Unavailable as refusal:
            print(done, refusal.code)
        try:
            writer.check_ready()
        except Unavailable as refusal:
            print("before the run", refusal.code)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.usage(record(done))
        writer.close()
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    done = int(run.stdout.split()[0])
    assert 0 < done < 10
    assert run.stdout.count("JOURNAL_UNAVAILABLE") == 2
    path = tmp_path / "node-1.alj"
    assert verify(path) == []
    assert usage_ids(read_segment(path)) == [record(number).usage_id for number in range(done + 1)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_every_acknowledged_record_survives_kill_9(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from serving.journal import JournalWriter
        from tests.serving.test_journal import record
        writer = JournalWriter(Path(sys.argv[1]), "node", 1)
        for number in range(1000):
            writer.usage(record(number))
            os.write(1, b"%d\\n" % number)
            if number == 333:
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    acknowledged = [f"{int(line):026d}" for line in run.stdout.split()]
    assert len(acknowledged) == 334
    sealed = seal_segment(tmp_path / "node-1.alj")
    assert set(acknowledged) <= set(usage_ids(sealed))
    assert verify(tmp_path / "node-1.alj") == []
