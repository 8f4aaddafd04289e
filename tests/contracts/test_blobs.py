"""The contract of `Blobs`, run on the folder and on its twin in memory."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from model_store.blobs import Blobs, FolderBlobs, MemoryBlobs
from model_store.errors import BadInput, NotFound

ABSENT = hashlib.sha256(b"nothing of the kind").hexdigest()


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return FolderBlobs(tmp_path / "blobs") if request.param == "folder" else MemoryBlobs()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content" * 1000)
    return path


def test_a_blob_is_found_under_the_hash_of_its_content(blobs: Blobs, file: Path) -> None:
    sha256 = blobs.put(file)
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert blobs.has(sha256)
    assert blobs.path(sha256).read_bytes() == file.read_bytes()


def test_a_blob_does_not_follow_the_file_it_came_from(blobs: Blobs, file: Path) -> None:
    sha256 = blobs.put(file)
    before = file.read_bytes()
    file.write_bytes(b"changed")
    assert blobs.path(sha256).read_bytes() == before
    file.unlink()
    assert blobs.path(sha256).read_bytes() == before


def test_the_same_content_twice_is_one_blob(blobs: Blobs, file: Path) -> None:
    assert blobs.put(file) == blobs.put(file)
    assert len(list(blobs.hashes())) == 1


def test_an_empty_file_is_a_blob(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert blobs.path(blobs.put(tmp_path / "empty")).read_bytes() == b""


def test_a_deleted_blob_is_gone(blobs: Blobs, file: Path) -> None:
    sha256 = blobs.put(file)
    assert blobs.delete(sha256)
    assert not blobs.has(sha256)
    assert not blobs.delete(sha256)
    with pytest.raises(NotFound) as error:
        blobs.path(sha256)
    assert error.value.code == "BLOB_NOT_FOUND"


def test_hashes_are_listed_in_order(blobs: Blobs, tmp_path: Path) -> None:
    kept = []
    for number in range(5):
        (tmp_path / "f").write_bytes(bytes([number]))
        kept.append(blobs.put(tmp_path / "f"))
    assert list(blobs.hashes()) == sorted(kept)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "0" * 63, f"{'0' * 64}\n", "0" * 65])
def test_what_is_no_hash_is_refused(blobs: Blobs, name: str) -> None:
    for ask in (blobs.path, blobs.has, blobs.delete):
        with pytest.raises(BadInput) as error:
            ask(name)
        assert error.value.code == "BLOB_HASH_INVALID"


def test_a_missing_file_keeps_nothing(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.put(tmp_path / "absent")
    assert list(blobs.hashes()) == []
    assert not blobs.has(ABSENT)


def test_a_second_process_sees_the_folder(tmp_path: Path, file: Path) -> None:
    sha256 = FolderBlobs(tmp_path / "blobs").put(file)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (str(tmp_path / "blobs"), sha256)) == file.read_bytes()


def _read(root: str, sha256: str) -> bytes:
    return FolderBlobs(Path(root)).path(sha256).read_bytes()


def test_what_a_killed_writer_left_is_swept(tmp_path: Path, file: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    sha256 = blobs.put(file)
    incoming = tmp_path / "blobs" / "incoming"
    for name, age_s in (("left", 60), ("coming", 0)):
        (incoming / f"{name}.partial").write_bytes(b"half")
        os.utime(incoming / f"{name}.partial", (time.time() - age_s,) * 2)
    assert blobs.sweep(time.time() - 30) == 1
    assert list(blobs.hashes()) == [sha256]
    assert [each.name for each in incoming.iterdir()] == ["coming.partial"]
