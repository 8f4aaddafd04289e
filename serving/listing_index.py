"""What a lone node's folder of bundles held at its last start, so that the next start reads only what has changed.

A file of its own in the node's home, beside its key, not among the bundles: these may be read-only, or another's to
write. It is believed only where nobody but this user (and root) may write it; who can write there can change the key
too. It says nothing that a manifest did not say: of a manifest.json that was read and passed every check, the name and
the digest, good for as long as that file is the same by inode, size, time of change and time of modification. A load
reads and checks the manifest again anyway.

Damaged, written by an AlgoMart whose manifests follow other rules, or of another folder: it is made anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pydantic

from model_store import bundle, manifest, schema, step_specs

INDEX_FILE = "listing.json"
_FORMAT = 1
# A file changed again within one tick of its clock looks unchanged (FAT's ticks are 2 s): the newest are not kept.
SETTLED_NS = 2_500_000_000
_log = logging.getLogger("algomart.node")


class Known(msgspec.Struct, array_like=True, frozen=True):
    """One bundle: of its manifest.json inode, bytes and nanoseconds since 1970; its name and digest."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    name: str
    digest: str

    def is_of(self, facts: os.stat_result) -> bool:
        """Whether the manifest with these facts is the one that was read."""
        return (
            facts.st_ino == self.inode
            and facts.st_size == self.size
            and facts.st_mtime_ns == self.modified_ns
            and facts.st_ctime_ns == self.changed_ns
        )


Entries = dict[str, Known]  # by the name of the bundle's folder


class _Head(msgspec.Struct, frozen=True):
    """The first line. `blake2b` is of all that follows it."""

    format: int
    rules: str
    folder: str
    device: int
    inode: int
    blake2b: str


def known_of(facts: os.stat_result, name: str, digest: str, read_at_ns: int) -> Known | None:
    """What to keep of a manifest with these facts that was read since `read_at_ns`; None: too new to be kept."""
    if max(facts.st_mtime_ns, facts.st_ctime_ns) > read_at_ns - SETTLED_NS:
        return None
    return Known(facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, name, digest)


def read_index(home: Path, folder: Path) -> Entries:
    """What is known of the bundles in `folder`; nothing where the index cannot be believed."""
    try:
        content = _read_own(home / INDEX_FILE)
        head, _, body = content.partition(b"\n")
        said = msgspec.json.decode(head, type=_Head)
        if said != _head(folder, body):
            return {}
        return msgspec.json.decode(body, type=Entries)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def write_index(home: Path, folder: Path, entries: Mapping[str, Known]) -> None:
    """Replace the index, all or nothing. Where that cannot be done the next start reads everything again."""
    partial = home / f".{INDEX_FILE}.{secrets.token_hex(4)}"
    try:
        body = msgspec.json.encode(entries)
        head = msgspec.json.encode(_head(folder, body))
        # Not synced: one that a power cut tears is found by its digest.
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(head + b"\n" + body)
        os.replace(partial, home / INDEX_FILE)
    except OSError as error:
        _log.warning("the index of %s is not kept: %s", folder, error)
        partial.unlink(missing_ok=True)


def _read_own(path: Path) -> bytes:
    """Raises `OSError` also where another user owns the file or may write it, and where it is a link."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        others = stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & others:
            raise PermissionError(f"{path} may be written by others")
        return file.read()


def _head(folder: Path, body: bytes) -> _Head:
    facts = os.stat(folder)
    return _Head(
        _FORMAT, _rules(), str(folder.absolute()), facts.st_dev, facts.st_ino, hashlib.blake2b(body).hexdigest()
    )


def _rules() -> str:
    """What manifests are checked by: another version of it may refuse what this one took."""
    summed = hashlib.blake2b(pydantic.VERSION.encode(), digest_size=16)
    for module in (bundle, manifest, schema, step_specs):
        assert module.__file__ is not None, "a module of this package is a file"
        summed.update(Path(module.__file__).read_bytes())
    return summed.hexdigest()
