"""Blobs: immutable files kept under the SHA-256 of their content (zips of bundles, mostly).

A port of a few methods, the folder that keeps them, and its twin in memory; one contract suite runs on both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from model_store.errors import BadInput, NotFound

_HASH = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


class Blobs(Protocol):
    def put(self, path: Path) -> str:
        """Keep a copy of the file; returns its SHA-256 (hex). The same content twice is kept once."""

    def path(self, sha256: str) -> Path:
        """A readable file with the blob's content. Raises `NotFound` BLOB_NOT_FOUND, `BadInput` BLOB_HASH_INVALID."""

    def has(self, sha256: str) -> bool: ...

    def delete(self, sha256: str) -> bool:
        """Remove the blob; False where there was none."""

    def hashes(self) -> Iterator[str]:
        """Every blob kept, in order: what a reconciler compares with the registry."""

    def sweep(self, before_s: float) -> int:
        """Remove what a killed `put` left half-written before that time (seconds since 1970). Returns how many."""


class FolderBlobs:
    """`root/sha256/ab/abcd…`: written beside, flushed to disk, then renamed, so a blob is whole or absent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "sha256"
        self._incoming = root / "incoming"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)

    def put(self, path: Path) -> str:
        partial = self._incoming / f"{secrets.token_hex(8)}.partial"
        digest = hashlib.sha256()
        try:
            with path.open("rb") as reader, partial.open("xb") as writer:
                while chunk := reader.read(_CHUNK):
                    digest.update(chunk)
                    writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            sha256 = digest.hexdigest()
            target = self._target(sha256)
            if target.exists():
                os.utime(target)  # wanted again: whoever sweeps leftovers looks at the age
            else:
                target.parent.mkdir(exist_ok=True)
                partial.chmod(0o444)
                os.replace(partial, target)
                _sync_folder(target.parent)
            return sha256
        finally:
            partial.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        target = self._target(sha256)
        if not target.is_file():
            raise blob_not_found(sha256)
        return target

    def has(self, sha256: str) -> bool:
        return self._target(sha256).is_file()

    def delete(self, sha256: str) -> bool:
        try:
            self._target(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def hashes(self) -> Iterator[str]:
        for folder in sorted(self._folder.iterdir()):
            for file in sorted(folder.iterdir()):
                if _HASH.fullmatch(file.name):
                    yield file.name

    def sweep(self, before_s: float) -> int:
        swept = 0
        for each in self._incoming.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):  # one that is being written is renamed at any moment
                if each.stat().st_mtime < before_s:
                    each.unlink()
                    swept += 1
        return swept

    def _target(self, sha256: str) -> Path:
        return self._folder / check_hash(sha256)[:2] / sha256


class MemoryBlobs:
    """The twin for tests: content in memory, and a temporary folder from which `path` can be read."""

    def __init__(self) -> None:
        self._content: dict[str, bytes] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="algomart-blobs-")

    def put(self, path: Path) -> str:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        self._content[sha256] = content
        return sha256

    def path(self, sha256: str) -> Path:
        if check_hash(sha256) not in self._content:
            raise blob_not_found(sha256)
        target = Path(self._folder.name, sha256)
        if not target.exists():
            target.write_bytes(self._content[sha256])
        return target

    def has(self, sha256: str) -> bool:
        return check_hash(sha256) in self._content

    def delete(self, sha256: str) -> bool:
        found = self._content.pop(check_hash(sha256), None) is not None
        Path(self._folder.name, sha256).unlink(missing_ok=True)
        return found

    def hashes(self) -> Iterator[str]:
        yield from sorted(self._content)

    def sweep(self, before_s: float) -> int:
        return 0


def check_hash(sha256: str) -> str:
    """`sha256` if it is 64 lower-case hex digits, else `BadInput` BLOB_HASH_INVALID."""
    if _HASH.fullmatch(sha256):
        return sha256
    raise BadInput(
        "BLOB_HASH_INVALID",
        zh=f"“{sha256[:80]}”不是 SHA-256",
        en=f"{sha256[:80]!r} is not a SHA-256",
        remedy_zh="应为 64 位小写十六进制",
        remedy_en="it has 64 lower-case hex digits",
        field="sha256",
    )


def blob_not_found(sha256: str) -> NotFound:
    return NotFound(
        "BLOB_NOT_FOUND",
        zh=f"没有内容为 {sha256} 的文件",
        en=f"no blob {sha256}",
        remedy_zh="请重新发布该版本",
        remedy_en="publish the version again",
        field="sha256",
    )


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once its folder is flushed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
