"""What a lone node lists of a folder, and what it may take from its last start: never anything that has changed."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pydantic
import pytest

from model_store.bundle import MANIFEST, MODEL, pack
from serving import listing, listing_index
from serving.listing import Listing
from serving.listing_index import INDEX_FILE, read_index
from serving.memory_admission import FolderBundles
from serving.ports import Principal
from tests.model_store.adapted import adapter, adapter_bundle, base_bundle
from tests.serving.parts import bundle, double

ANYBODY = Principal("key", "org", "enterprise", frozenset({"use"}))


class Start:
    """One start of a node: what it listed, and which folders it had to read."""

    def __init__(self, folder: Path, home: Path) -> None:
        home.mkdir(exist_ok=True)
        self.read: list[str] = []
        real = listing.open_bundle_with_facts

        def counted(path: Path) -> object:
            self.read.append(path.name)
            return real(path)

        self.bundles = FolderBundles()
        look = Listing(self.bundles, home, trusted=True, owner="org")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing, "open_bundle_with_facts", counted)
            look.take(folder)
        self.names = sorted(look.names)

    def digest(self, name: str) -> str:
        return self.bundles.resolve(name, None, ANYBODY).digest


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made just now count as old: no test waits for seconds to pass."""
    monkeypatch.setattr(listing_index, "SETTLED_NS", -(10**15))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    for name in ("one", "two"):
        bundle(folder / name, f"a/{name}", double())
    (folder / "notes").mkdir()  # no bundle
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.usefixtures("settled")
def test_a_second_start_lists_the_same_and_reads_nothing_again(shelf: Path, home: Path) -> None:
    before = sorted(shelf.rglob("*"))
    first, second = Start(shelf, home), Start(shelf, home)
    assert first.names == second.names == ["a/one@1", "a/two@1"]
    assert {"one", "two"} <= set(first.read)
    assert second.read == ["notes"]
    assert [first.digest(f"a/{name}") for name in ("one", "two")] == [
        second.digest(f"a/{name}") for name in ("one", "two")
    ]
    assert second.bundles.resolve("a/one", None, ANYBODY).bundle == shelf / "one"
    assert sorted(shelf.rglob("*")) == before  # the folder may be read-only: nothing is kept there
    assert (home / INDEX_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("settled")
def test_what_was_added_changed_or_taken_away_is_seen(shelf: Path, home: Path) -> None:
    bundle(shelf / "three", "a/three", double())
    old = Start(shelf, home).digest("a/one")
    bundle(shelf / "four", "a/four", double())
    bundle(shelf / "one", "a/one", double(5))
    shutil.rmtree(shelf / "two")
    again = Start(shelf, home)
    assert again.names == ["a/four@1", "a/one@1", "a/three@1"]
    assert again.digest("a/one") != old
    assert sorted(again.read) == ["four", "notes", "one"]
    assert Start(shelf, home).read == ["notes"]
    assert set(read_index(home, shelf)) == {"one", "three", "four"}


@pytest.mark.usefixtures("settled")
def test_a_manifest_changed_in_place_is_seen_though_its_size_and_time_are_as_before(shelf: Path, home: Path) -> None:
    Start(shelf, home)
    path = shelf / "one" / MANIFEST
    facts, content = path.stat(), path.read_bytes()
    while path.stat().st_ctime_ns == facts.st_ctime_ns:  # within one tick nothing is kept, see below
        with path.open("r+b") as file:
            file.write(content.replace(b"a/one", b"a/uno"))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert Start(shelf, home).names == ["a/two@1", "a/uno@1"]


def test_what_was_written_just_now_is_not_kept(shelf: Path, home: Path) -> None:
    """Another change within the same tick of the clock would not be seen."""
    Start(shelf, home)
    assert read_index(home, shelf) == {}
    assert sorted(Start(shelf, home).read) == ["notes", "one", "two"]


@pytest.mark.usefixtures("settled")
def test_a_bundle_that_lost_its_graph_is_left_out_and_said(
    shelf: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Start(shelf, home)
    (shelf / "one" / MODEL).unlink()
    for _ in range(2):
        caplog.clear()
        assert Start(shelf, home).names == ["a/two@1"]
        assert "MODEL_MISSING" in caplog.text
        assert "notes" not in caplog.text


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", ["no json", "link", "folder", "pipe", "unreadable name"])
def test_a_manifest_that_is_none_is_said_at_every_start(
    shelf: Path, home: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    Start(shelf, home)
    path = shelf / "one" / MANIFEST
    content = path.read_bytes()
    path.unlink()
    if kind == "no json":
        path.write_bytes(content[:-10])
    elif kind == "link":
        (shelf / "elsewhere.json").write_bytes(content)
        path.symlink_to(shelf / "elsewhere.json")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content.replace(b'"a/one"', b"17"))
    for _ in range(2):
        caplog.clear()
        assert Start(shelf, home).names == ["a/two@1"]
        assert f"{shelf / 'one'} is left out" in caplog.text


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "head only", "older format", "folder", "link"])
def test_a_damaged_index_is_made_anew(shelf: Path, home: Path, damage: str) -> None:
    expected = Start(shelf, home).names
    path = home / INDEX_FILE
    content = path.read_bytes()
    head, _, body = content.partition(b"\n")
    if damage == "flipped":
        at = content.index(b"a/two")
        path.write_bytes(content[:at] + b"b" + content[at + 1 :])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "link":
        path.rename(home / "other")
        path.symlink_to(home / "other")
    else:
        made = {
            "cut": content[:-5], "empty": b"", "text": b"\xff\xfe\n{}", "head only": head,
            "older format": head.replace(b'"format":1', b'"format":0') + b"\n" + body,
        }  # fmt: skip
        path.write_bytes(made[damage])
    again = Start(shelf, home)
    assert again.names == expected
    assert sorted(again.read) == ["notes", "one", "two"]
    if damage != "folder":
        assert Start(shelf, home).read == ["notes"]


@pytest.mark.usefixtures("settled")
def test_an_index_that_others_may_write_is_not_believed(shelf: Path, home: Path) -> None:
    Start(shelf, home)
    forged = {name: each for name, each in read_index(home, shelf).items() if name != "one"}
    forged["one"] = listing_index.Known(**_facts(shelf), name="a/x", digest="0")
    listing_index.write_index(home, shelf, forged)
    assert Start(shelf, home).names == ["a/two@1", "a/x@1"]  # so it is well made: only its mode tells them apart
    listing_index.write_index(home, shelf, forged)
    (home / INDEX_FILE).chmod(0o620)
    assert Start(shelf, home).names == ["a/one@1", "a/two@1"]
    assert (home / INDEX_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("settled")
@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_an_index_of_another_user_is_not_believed(shelf: Path, home: Path) -> None:
    Start(shelf, home)
    os.chown(home / INDEX_FILE, 65534, 65534)
    assert "one" in Start(shelf, home).read


@pytest.mark.usefixtures("settled")
def test_other_rules_for_manifests_and_other_folders_begin_anew(
    shelf: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(shelf, home)
    copied = tmp_path / "copied"
    shutil.copytree(shelf, copied)
    assert "one" in Start(copied, home).read
    assert "one" in Start(shelf, home).read
    monkeypatch.setattr(pydantic, "VERSION", "another")
    assert "one" in Start(shelf, home).read


@pytest.mark.usefixtures("settled")
def test_a_folder_put_in_the_place_of_another_is_read(shelf: Path, home: Path) -> None:
    Start(shelf, home)
    shelf.rename(shelf.with_name("away"))
    bundle(shelf / "one", "a/other", double())
    assert Start(shelf, home).names == ["a/other@1"]


@pytest.mark.usefixtures("settled")
def test_where_the_index_cannot_be_written_the_node_starts_all_the_same(
    shelf: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / INDEX_FILE / "in the way").mkdir(parents=True)
    for _ in range(2):
        assert Start(shelf, home).names == ["a/one@1", "a/two@1"]
    assert any("index" in each.message and each.levelno == logging.WARNING for each in caplog.records)
    assert [path.name for path in home.iterdir()] == [INDEX_FILE]


@pytest.mark.usefixtures("settled")
def test_versions_of_one_name_keep_their_numbers(shelf: Path, home: Path) -> None:
    bundle(shelf / "one-b", "a/one", double(5))
    first, second = Start(shelf, home), Start(shelf, home)
    assert first.names == second.names == ["a/one@1", "a/one@2", "a/two@1"]
    assert first.digest("a/one") == second.digest("a/one")


@pytest.mark.usefixtures("settled")
def test_adapters_find_their_bases_and_zips_are_unpacked_at_every_start(shelf: Path, home: Path) -> None:
    base = base_bundle(shelf / "z-base", indexed=True)
    adapted = adapter_bundle(shelf / "a-adapter", base, adapter(1), "vendor/adapted")
    pack(bundle(shelf.parent / "zipped", "a/zipped", double()), shelf / "zipped.zip")
    for _ in range(2):
        start = Start(shelf, home)
        names = [f"{each.manifest.name}@1" for each in (base, adapted)]
        assert start.names == sorted(["a/one@1", "a/two@1", "a/zipped@1", *names])
        served = start.bundles.resolve(adapted.manifest.name, None, ANYBODY)
        assert served.base is not None
        assert served.base.digest == base.digest
    assert "a-adapter" not in read_index(home, shelf)


def test_one_bundle_or_zip_by_itself_is_listed_without_an_index(shelf: Path, home: Path, tmp_path: Path) -> None:
    packed = bundle(tmp_path / "packed", "a/packed", double())
    assert Start(shelf / "one", home).names == ["a/one@1"]
    assert Start(pack(packed, tmp_path / "packed.zip"), home).names == ["a/packed@1"]
    assert Start(tmp_path / "nowhere", home).names == []
    assert not (home / INDEX_FILE).exists()


def _facts(shelf: Path) -> dict[str, int]:
    facts = os.stat(shelf / "one" / MANIFEST)
    return {
        "inode": facts.st_ino, "size": facts.st_size, "modified_ns": facts.st_mtime_ns, "changed_ns": facts.st_ctime_ns
    }  # fmt: skip
