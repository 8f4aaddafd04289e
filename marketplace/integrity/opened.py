"""A pack opened for judging: its files as streams, its usage and transfers in tables on disk."""

from __future__ import annotations

import csv
import hashlib
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from marketplace.integrity.json_stream import JsonStream
from marketplace.integrity.spool import spool

# The last three since format 3: the filing that a record was used under ("": not recorded, or none), the correction
# that took it back, and the P13 that was posted by it ("": that was no whole fen, or had not been charged yet).
COLUMNS = (
    "usage_id", "transfer_id", "reservation_id", "occurred_at_ms", "organisation_id", "model", "price_version", "unit",
    "units", "micro_per_unit", "amount_micro", "lease_kind", "node", "epoch", "seq", "request_digest",
    "response_digest", "filing_id", "correction", "correction_transfer",
)  # fmt: skip
MAX_BYTES = 4 << 30
MAX_LINE = 16 << 20  # bytes
_CHUNK = 1 << 20
# Whatever reading a pack that somebody damaged or made up may end in.
UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, csv.Error,
    sqlite3.Error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_TABLES = (
    "CREATE TABLE leaf (transfer TEXT PRIMARY KEY, leaf BLOB NOT NULL, line TEXT, proved INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX leaf_line ON leaf (line)",
    "CREATE TABLE usage (usage_id TEXT PRIMARY KEY, transfer TEXT NOT NULL, node TEXT NOT NULL, "
    "epoch INTEGER NOT NULL, seq INTEGER NOT NULL, organisation_id TEXT, model TEXT, price_version TEXT, "
    "occurred_at_ms TEXT, unit TEXT, units TEXT, amount_micro TEXT, lease_kind TEXT, "
    "correction TEXT NOT NULL, correction_transfer TEXT NOT NULL, "
    "filing TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX usage_transfer ON usage (transfer)",
    "CREATE INDEX usage_place ON usage (node, epoch, seq)",
    "CREATE TABLE invoice (line TEXT, id TEXT, number TEXT NOT NULL, provider TEXT NOT NULL, amount INTEGER NOT NULL, "
    "issued_on TEXT NOT NULL, backs INTEGER NOT NULL, PRIMARY KEY (line, id)) WITHOUT ROWID",
)
_INSERT = "INSERT OR IGNORE INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Pack:
    """`names`: as the archive lists them, twice where a name stands twice. `tables`: `leaf`, `usage` and
    `invoice`, empty until they are read in."""

    archive: zipfile.ZipFile
    names: list[str]
    tables: sqlite3.Connection

    def json(self, name: str) -> JsonStream:
        return JsonStream(self.archive.open(name))

    def document(self, name: str) -> Any:
        stream = self.json(name)
        found = stream.value()
        stream.finish()
        return found

    def items(self, name: str) -> Iterator[Any]:
        """The elements of a file that is one array."""
        stream = self.json(name)
        yield from stream.items()
        stream.finish()

    def sha256(self, name: str) -> str:
        """Of nothing where there is no such file."""
        digest = hashlib.sha256()
        if name in self.names:
            with self.archive.open(name) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def lines(self, name: str) -> Iterator[bytes]:
        """`ValueError` for one over `MAX_LINE`."""
        with self.archive.open(name) as file:
            yield from _lines(file, name)

    def take_usage(self, judge: Callable[[dict[str, str], bool], None]) -> int:
        """Read usage.csv into its table; answers how many rows it has. Each goes to `judge`, with whether its usage id
        had not been seen before; of two with one id the first is kept."""
        count = 0
        table = csv.DictReader(line.decode() for line in self.lines("usage.csv"))
        for row in table:
            count += 1
            kept = self.tables.execute(_INSERT, (
                row["usage_id"], str(int(row["transfer_id"])), row["node"], int(row["epoch"]), int(row["seq"]),
                row["organisation_id"], row["model"], row["price_version"], str(int(row["occurred_at_ms"])),
                row["unit"], row["units"], row["amount_micro"], row["lease_kind"], row.get("correction", ""),
                row.get("correction_transfer", ""), row.get("filing_id") or "",
            )).rowcount  # fmt: skip
            judge(row, kept == 1)
        return count


def key_of(transfer: Any) -> str:
    """A transfer's id as proofs have it. `ValueError`: it is none."""
    if type(transfer) is not int:
        raise ValueError(f"{transfer!r:.80} is no transfer")
    return str(transfer)


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"{name}: a line is longer than one may be")
        yield line


@contextmanager
def open_pack(path: Path) -> Iterator[Pack]:
    """Raises any of `UNREADABLE`, here and wherever the pack is read from. Its tables lie in a temporary folder."""
    with (
        zipfile.ZipFile(path) as archive,
        tempfile.TemporaryDirectory(prefix="algomart-verify-") as folder,
        spool(Path(folder), *_TABLES) as tables,
    ):
        infos = archive.infolist()
        if sum(info.file_size for info in infos) > MAX_BYTES:
            raise ValueError("larger than a pack may be")
        yield Pack(archive, [info.filename for info in infos], tables)
