"""Backup and restore: one .tar with everything a market has, and a manifest with the SHA-256 of each file in it.

A backup is taken while the market runs. Order matters: the market's database first (SQLite's own backup, one moment),
then MLflow's (a row appears in ours only after its version is there), then journals (what they hold beyond the database
is ingested again after a restore, once), then blobs (immutable, there before any row names them). Unpacked bundles,
samples and temporary files are not kept: they come back by themselves, or lapse.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from marketplace.clock import now_ms
from marketplace.settings import Settings
from model_store.errors import BadInput, Conflict, Unprocessable

FORMAT = 1
MANIFEST_NAME = "backup.json"
_DATABASES = ("market.db", "mlflow.db")
_FOLDERS = ("journal", "blobs", "mlflow-artifacts")
_SINGLE_FILES = ("demo-keys.json", "demo-logins.json")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What was written or read: `archive`, how many `files` and `bytes` in it."""

    archive: Path
    files: int
    bytes: int


def backup(settings: Settings, archive: Path) -> BackupResult:
    """Write `archive` (a new file, mode 0600). Raises `Unprocessable` where the database is not SQLite."""
    home = settings.home.resolve()
    if settings.database_url and not settings.database_url.startswith("sqlite"):
        raise Unprocessable(
            "BACKUP_DATABASE_FOREIGN",
            zh="数据库不是 SQLite, 本命令无法备份",
            en="the database is not SQLite; this command cannot copy it",
            remedy_zh="请用 pg_dump 备份数据库, 并复制数据目录中的 blobs、journal 与 mlflow-artifacts",
            remedy_en="copy the database with pg_dump, and the folders blobs, journal and mlflow-artifacts beside it",
        )
    if not (home / "market.db").exists():
        raise BadInput(
            "HOME_EMPTY",
            zh=f"{home} 中没有市场数据",
            en=f"there is no market in {home}",
            remedy_zh="请检查 ALGOMART_HOME",
            remedy_en="check ALGOMART_HOME",
            field="home",
        )
    if archive.exists():
        raise Conflict(
            "ARCHIVE_EXISTS",
            zh=f"{archive} 已存在",
            en=f"{archive} already exists",
            remedy_zh="请换一个文件名",
            remedy_en="choose another file name",
            field="archive",
        )
    partial = archive.with_name(archive.name + ".part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            entries = _write_all(home, tar)
            _add_bytes(tar, MANIFEST_NAME, json.dumps(_manifest(entries), ensure_ascii=False, indent=1).encode())
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
    return BackupResult(archive, len(entries), sum(entry["bytes"] for entry in entries.values()))


def restore(archive: Path, home: Path) -> BackupResult:
    """Unpack a backup into a `home` that is not there or empty, after checking every hash. All or nothing."""
    if home.exists() and any(home.iterdir()):
        raise Conflict(
            "HOME_NOT_EMPTY",
            zh=f"{home} 不是空目录",
            en=f"{home} is not empty",
            remedy_zh="请指定一个新的数据目录, 恢复不会覆盖现有数据",
            remedy_en="name a new folder: a restore never writes over data",
            field="home",
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{home.name}-restore-", dir=home.parent))
    try:
        entries = _unpack_checked(archive, staging)
        staging.chmod(0o700)
        if home.exists():
            home.rmdir()
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return BackupResult(archive, len(entries), sum(int(entry["bytes"]) for entry in entries.values()))


def _write_all(home: Path, tar: tarfile.TarFile) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="backup-", dir=home) as scratch:
        for name in _DATABASES:
            if (home / name).exists():
                copy = Path(scratch) / name
                _copy_sqlite(home / name, copy)
                entries[name] = _add_file(tar, copy, name)
    for path in _files_under(home):
        name = path.relative_to(home).as_posix()
        entries[name] = _add_file(tar, path, name)
    return entries


def _files_under(home: Path) -> Iterator[Path]:
    for folder in _FOLDERS:
        yield from sorted(path for path in (home / folder).rglob("*") if path.is_file() and not path.is_symlink())
    yield from (home / name for name in _SINGLE_FILES if (home / name).is_file())


def _copy_sqlite(source: Path, target: Path) -> None:
    reader = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
    writer = sqlite3.connect(target)
    try:
        reader.backup(writer, pages=4096)
        writer.execute("PRAGMA journal_mode=DELETE")
    finally:
        writer.close()
        reader.close()


def _add_file(tar: tarfile.TarFile, path: Path, name: str) -> dict[str, Any]:
    """Add exactly the bytes that the file has now (a journal grows while it is read) and answer their hash."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(path.stat().st_mtime)
        digest = _Hashing(stream)
        tar.addfile(info, digest)
    return {"sha256": digest.hash.hexdigest(), "bytes": size}


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    tar.addfile(info, io.BytesIO(content))


def _manifest(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"format": FORMAT, "created_at_ms": now_ms(), "files": entries}


def _unpack_checked(archive: Path, staging: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    raise _damaged(f"{member.name} is not a plain file")
                tar.extract(member, staging, filter="data", set_attrs=False)
                target = staging / member.name
                target.chmod(0o600)
                found[member.name] = _sha256(target)
        manifest = json.loads((staging / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _damaged(str(error)) from error
    (staging / MANIFEST_NAME).unlink()
    entries: dict[str, dict[str, Any]] = manifest.get("files", {})
    if manifest.get("format") != FORMAT:
        raise _damaged(f"format {manifest.get('format')!r}, not {FORMAT}")
    found.pop(MANIFEST_NAME)
    for name in sorted(entries.keys() | found.keys()):
        if name not in found or name not in entries or entries[name]["sha256"] != found[name]:
            raise _damaged(f"{name} is missing, extra or changed")
    return entries


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(what: str) -> Unprocessable:
    return Unprocessable(
        "BACKUP_DAMAGED",
        zh=f"备份文件不完整或已被改动: {what}",
        en=f"the backup is incomplete or was changed: {what}",
        remedy_zh="请使用另一份备份; 没有写入任何数据",
        remedy_en="use another backup; nothing was written",
        field="archive",
    )


class _Hashing:
    """A reader that hashes what passes through."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()

    def read(self, size: int = _CHUNK_BYTES) -> bytes:
        block = self._stream.read(size)
        self.hash.update(block)
        return block
