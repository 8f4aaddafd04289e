"""Backup, restore and doctor: what is kept comes back whole, what was damaged is refused or reported."""

import hashlib
import json
import sqlite3
import tarfile

import pytest

from marketplace.backup import MANIFEST_NAME, backup, restore
from marketplace.db import open_database, transaction
from marketplace.doctor import examine, is_sound
from marketplace.evidence.tables import EvidenceFile
from marketplace.ledger.tables import LedgerAccount
from marketplace.migrations.upgrade import upgrade
from marketplace.settings import Settings
from model_store.errors import Refusal
from tests.marketplace.shelf import add_listing, add_organisation, add_version


@pytest.fixture
def home(tmp_path):
    """A stopped market: a migrated database with an organisation, a blob, a journal, demonstration keys."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    upgrade(engine)
    with transaction(engine) as session:
        add_organisation(session, "acme", name_zh="东莞某厂")
    engine.dispose()
    blob = b"a bundle" * 1000
    digest = hashlib.sha256(blob).hexdigest()
    (home / "blobs" / "sha256" / digest[:2]).mkdir(parents=True)
    (home / "blobs" / "sha256" / digest[:2] / digest).write_bytes(blob)
    (home / "journal").mkdir()
    (home / "journal" / "local-1.alj").write_bytes(b"\x00\x01journal")
    (home / "demo-keys.json").write_text("{}")
    (home / "tmp").mkdir()
    (home / "tmp" / "scratch").write_text("not kept")
    return home


def settings_of(home) -> Settings:
    return Settings(home=home)


def checks(home) -> dict[str, str]:
    return {finding.check: finding.severity for finding in examine(settings_of(home))}


def test_a_backup_comes_back_byte_for_byte(home, tmp_path):
    archive = tmp_path / "market.tar"
    kept = backup(settings_of(home), archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    restored = tmp_path / "again"
    assert restore(archive, restored).files == kept.files == 4
    for path in ("journal/local-1.alj", "demo-keys.json"):
        assert (restored / path).read_bytes() == (home / path).read_bytes()
    assert not (restored / "tmp").exists()
    assert restored.stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(restored / "market.db") as connection:
        assert connection.execute("SELECT name_zh FROM organisation").fetchall() == [("东莞某厂",)]
    assert is_sound(examine(settings_of(restored)))


def test_a_backup_of_a_running_market_is_one_consistent_moment(home, tmp_path):
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with transaction(engine) as session:
        add_organisation(session, "uncommitted")
        session.flush()
        backup(settings_of(home), tmp_path / "market.tar")
    restore(tmp_path / "market.tar", tmp_path / "again")
    with sqlite3.connect(tmp_path / "again" / "market.db") as connection:
        assert connection.execute("SELECT slug FROM organisation").fetchall() == [("acme",)]


def test_a_restore_never_writes_over_data(home, tmp_path):
    backup(settings_of(home), tmp_path / "market.tar")
    with pytest.raises(Refusal) as refusal:
        restore(tmp_path / "market.tar", home)
    assert refusal.value.code == "HOME_NOT_EMPTY"


def test_a_backup_is_not_written_over(home, tmp_path):
    (tmp_path / "market.tar").write_text("precious")
    with pytest.raises(Refusal) as refusal:
        backup(settings_of(home), tmp_path / "market.tar")
    assert refusal.value.code == "ARCHIVE_EXISTS"
    with pytest.raises(Refusal) as refusal:
        backup(settings_of(tmp_path / "nothing"), tmp_path / "other.tar")
    assert refusal.value.code == "HOME_EMPTY"


@pytest.mark.parametrize("damage", ["truncate", "flip", "not a tar", "missing", "extra", "traversal"])
def test_a_damaged_backup_is_refused_and_nothing_is_written(home, tmp_path, damage):
    archive, target = tmp_path / "market.tar", tmp_path / "again"
    backup(settings_of(home), archive)
    content = bytearray(archive.read_bytes())
    if damage == "truncate":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[content.index(b"a bundlea bundle")] ^= 1
        archive.write_bytes(content)
    elif damage == "not a tar":
        archive.write_bytes(b"hello")
    else:
        repack(archive, damage)
    with pytest.raises(Refusal) as refusal:
        restore(archive, target)
    assert refusal.value.code == "BACKUP_DAMAGED"
    assert not target.exists()
    assert not (tmp_path / "evil").exists()
    assert not list(tmp_path.glob(".again-restore-*"))


def repack(archive, damage) -> None:
    with tarfile.open(archive) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    if damage == "missing":
        del members["journal/local-1.alj"]
    elif damage == "extra":
        members["blobs/extra"] = b"x"
    else:
        manifest = json.loads(members[MANIFEST_NAME])
        manifest["files"]["../evil"] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        members = {"../evil": b"x"} | members | {MANIFEST_NAME: json.dumps(manifest).encode()}
    with tarfile.open(archive, "w") as tar:
        import io

        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_a_sound_market_is_found_sound(home):
    assert set(checks(home).values()) == {"ok"}


def test_the_doctor_finds_a_damaged_blob(home):
    blob = next(path for path in (home / "blobs").rglob("*") if path.is_file())
    blob.write_bytes(b"rotten")
    assert checks(home)["blobs"] == "error"


def test_the_doctor_finds_a_ledger_that_does_not_balance(home):
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with transaction(engine) as session:
        session.add(LedgerAccount(code="M.bank", ledger="M", balance_fen=7, floor_zero=0))
    assert checks(home)["ledger"] == "error"


def test_the_doctor_finds_a_version_that_the_registry_does_not_know(home):
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.execute("CREATE TABLE model_versions (name TEXT, version INTEGER, current_stage TEXT)")
        connection.execute("INSERT INTO model_versions VALUES ('acme--steel', 1, 'None')")
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with transaction(engine) as session:
        listing = add_listing(session, "acme/steel")
        add_version(session, listing, 1)
    assert checks(home)["registry"] == "ok"
    with transaction(engine) as session:
        add_version(session, listing, 2)
    assert checks(home)["registry"] == "error"
    with sqlite3.connect(home / "mlflow.db") as connection:  # deleted there: MLflow keeps the row
        connection.execute("INSERT INTO model_versions VALUES ('acme--steel', 2, 'Deleted_Internal')")
    assert checks(home)["registry"] == "error"
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.execute("UPDATE model_versions SET current_stage = 'None'")
    assert checks(home)["registry"] == "ok"


def test_the_doctor_says_what_it_cannot_read(home, tmp_path):
    (home / "market.db").write_bytes(b"not a database at all")
    found = checks(home)
    assert found["integrity"] == found["ledger"] == "error"
    assert checks(tmp_path / "nowhere")["home"] == "error"


def test_the_doctor_warns_of_a_folder_that_others_can_read(home):
    home.chmod(0o755)
    assert checks(home)["home"] == "warning"


def test_evidence_comes_back_with_a_backup_and_a_missing_file_is_reported(home, tmp_path):
    blob = next(path for path in (home / "blobs").rglob("*") if path.is_file())
    facts = {"of": "application", "subject_id": "app_1", "organisation_id": "org_acme", "code": "contract", "name": "a",
             "kind": "pdf", "size_bytes": 8_000, "uploaded_by": "m", "keep_until": "2099-01-01"}  # fmt: skip
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    with transaction(engine) as session:
        session.add(EvidenceFile(id="evf_1", sha256=blob.name, **facts))
    engine.dispose()
    backup(settings_of(home), tmp_path / "market.tar")
    restored = tmp_path / "again"
    restore(tmp_path / "market.tar", restored)
    assert checks(restored)["blobs"] == "ok"
    next((restored / "blobs").rglob(blob.name)).unlink()
    assert checks(restored)["blobs"] == "error"
