"""The usage journal, format version 1: append-only, one file per node and epoch, written before the answer goes out.

A file is a run of frames, little-endian: `u32 length | u32 CRC-32C of the payload | payload` (msgpack, a map whose
`kind` says what it is). The first payload is the header `{magic, version, node, epoch, first_seq}`; then come usage,
start, progress and end, each with the next `seq`; a seal `{last_seq, count, sha256}` ends the file, `sha256` being that
of every byte before the seal's frame. Length 0 is never written, so that a tail of zeros is torn, not empty.

A reader stops at a torn tail and says where and why (`Torn`); it never skips. See ../shared/design/vouchers.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import msgspec

from serving.metering import UsageRecord

MAGIC = "algomart-journal"
VERSION = 1
SUFFIX = ".alj"
MAX_RECORD_BYTES = 1 << 20
READ_BYTES = 4 << 20
FRAME = struct.Struct("<II")
_NODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class JournalHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="header"):
    magic: str
    version: int
    node: str
    epoch: int
    first_seq: int


class UsageEntry(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="usage", omit_defaults=True):
    """One finished run. `idempotency`: digest of organisation and Idempotency-Key, "" where the call had none."""

    seq: int
    usage: UsageRecord
    idempotency: str = ""


class StartEntry(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="start"):
    """A stream began; `usage` holds the estimate. Without an end it settles at the last progress, `unresolved`.

    No way of this node makes long streams yet: each answer of `generate_stream`, and each message of a gRPC stream, is
    one run and one `UsageEntry`. The frames are read, recovered, charged and simulated, for nodes that do.
    """

    seq: int
    usage: UsageRecord


class ProgressEntry(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="progress"):
    """Counters of a running stream so far (not increments)."""

    seq: int
    usage_id: str
    units: dict[str, int]
    amount_micro: int


class EndEntry(msgspec.Struct, frozen=True, gc=False, tag_field="kind", tag="end"):
    """A stream ended; `usage` is what it came to."""

    seq: int
    usage: UsageRecord


class SealEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="seal"):
    """`count` records, the last of them `last_seq` (first_seq - 1 where there is none); `sha256` in hexadecimal."""

    last_seq: int
    count: int
    sha256: str


Entry = UsageEntry | StartEntry | ProgressEntry | EndEntry
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(JournalHeader | UsageEntry | StartEntry | ProgressEntry | EndEntry | SealEntry)
# What msgspec raises at bytes that are none of its making: also at text that is not UTF-8, and at nesting without end.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_header = msgspec.msgpack.Decoder(JournalHeader)


@dataclass(frozen=True, slots=True)
class Torn:
    """Where reading stopped short of the end of the file, and why: frame | length | crc | payload | order | tail."""

    offset: int
    reason: str


@dataclass(slots=True)
class Segment:
    """What was read. `next_offset`: from where to go on, just after the last whole frame. `torn` None: a clean end."""

    header: JournalHeader
    entries: list[Entry] = field(default_factory=list)
    next_offset: int = 0
    seal: SealEntry | None = None
    torn: Torn | None = None
    more: bool = False  # stopped at `limit`, not at the end


class JournalUnreadable(Exception):
    """Not a journal of this version: the header itself is torn or foreign."""


def segment_path(folder: Path, node: str, epoch: int) -> Path:
    """`<folder>/<node>-<epoch>.alj`; ValueError for a node name that cannot be a file name."""
    if not _NODE.fullmatch(node) or epoch < 0:
        raise ValueError(f"not a node and epoch: {node!r}, {epoch}")
    return folder / f"{node}-{epoch}{SUFFIX}"


def frame(payload: bytes) -> bytes:
    """Length, checksum, payload."""
    return FRAME.pack(len(payload), google_crc32c.value(payload)) + payload


def frame_of(entry: JournalHeader | Entry | SealEntry) -> bytes:
    """An entry as it stands in the file."""
    return frame(_encoder.encode(entry))


def read_header(path: Path) -> tuple[JournalHeader, int]:
    """The header and the offset after it. Raises `JournalUnreadable`, OSError."""
    with path.open("rb") as reader:
        start = reader.read(FRAME.size)
        if len(start) < FRAME.size:
            raise JournalUnreadable(f"{path.name}: no header")
        length, crc = FRAME.unpack(start)
        payload = reader.read(length) if 0 < length <= MAX_RECORD_BYTES else b""
    if not payload or len(payload) != length or google_crc32c.value(payload) != crc:
        raise JournalUnreadable(f"{path.name}: the header is torn")
    try:
        header = _decode_header.decode(payload)
    except UNREADABLE as error:
        raise JournalUnreadable(f"{path.name}: {error}") from error
    if header.magic != MAGIC or header.version != VERSION:
        raise JournalUnreadable(f"{path.name}: {header.magic!r} version {header.version}, expected {MAGIC} {VERSION}")
    return header, FRAME.size + length


def read_segment(path: Path, from_offset: int = 0, limit: int | None = None) -> Segment:
    """Read whole frames from `from_offset` (0: the first) to the end, a seal, a torn tail, or `limit` entries.

    A live file may end inside a frame that is being written: read again later from `next_offset`. Raises
    `JournalUnreadable` where the header itself cannot be read, and OSError.
    """
    header, first = read_header(path)
    segment = Segment(header, next_offset=max(from_offset, first))
    expected = header.first_seq if from_offset <= first else None
    with path.open("rb") as reader:
        reader.seek(segment.next_offset)
        buffer = b""
        while True:
            chunk = reader.read(READ_BYTES)
            buffer += chunk
            used, expected = take_frames(buffer, segment, expected, limit)
            buffer = buffer[used:]
            if segment.torn is not None or segment.more:
                return segment
            if segment.seal is not None:
                if buffer or reader.read(1):
                    segment.torn = Torn(segment.next_offset, "tail")
                return segment
            if not chunk:
                if buffer:
                    segment.torn = Torn(segment.next_offset, "frame")
                return segment


def take_frames(buffer: bytes, segment: Segment, expected: int | None, limit: int | None) -> tuple[int, int | None]:
    """Take every whole frame of `buffer`; answers how many bytes were used and the sequence number due next."""
    at = 0
    while len(buffer) - at >= FRAME.size:
        length, crc = FRAME.unpack_from(buffer, at)
        reason = ""
        if not 0 < length <= MAX_RECORD_BYTES:
            reason = "length"
        elif len(buffer) - at - FRAME.size < length:
            break
        payload = buffer[at + FRAME.size : at + FRAME.size + length]
        if not reason and google_crc32c.value(payload) != crc:
            reason = "crc"
        entry: JournalHeader | Entry | SealEntry | None = None
        if not reason:
            try:
                entry = _decoder.decode(payload)
            except UNREADABLE:
                reason = "payload"
        if isinstance(entry, JournalHeader):
            reason = "order"
        elif entry is not None:
            last = entry.last_seq + 1 if isinstance(entry, SealEntry) else entry.seq
            if expected is not None and last != expected:
                reason = "order"
            expected = last + 1
        if reason or entry is None or isinstance(entry, JournalHeader):
            segment.torn = Torn(segment.next_offset, reason)
            return at, expected
        if limit is not None and len(segment.entries) >= limit and not isinstance(entry, SealEntry):
            segment.more = True
            return at, expected
        at += FRAME.size + length
        segment.next_offset += FRAME.size + length
        if isinstance(entry, SealEntry):
            segment.seal = entry
            break
        segment.entries.append(entry)
    return at, expected


def sha256_of_prefix(path: Path, end: int) -> str:
    """SHA-256 (hexadecimal) of the first `end` bytes of a file."""
    digest = hashlib.sha256()
    left = end
    with path.open("rb") as reader:
        while left > 0:
            chunk = reader.read(min(left, READ_BYTES))
            if not chunk:
                break
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def verify(path: Path) -> list[str]:
    """Everything wrong with a segment, in words; [] for a sealed and sound one. Raises as `read_segment`."""
    segment = read_segment(path)
    problems: list[str] = []
    if segment.torn is not None:
        problems.append(f"torn at byte {segment.torn.offset}: {segment.torn.reason}")
    if segment.seal is None:
        problems.append("not sealed")
        return problems
    if segment.seal.count != len(segment.entries):
        problems.append(f"the seal counts {segment.seal.count} records, there are {len(segment.entries)}")
    if sha256_of_prefix(path, segment.next_offset - len(frame_of(segment.seal))) != segment.seal.sha256:
        problems.append("the bytes are not those that were sealed")
    return problems


def seal_segment(path: Path) -> Segment:
    """Seal the file of a dead epoch: cut its torn tail (kept beside it as `<name>.torn`), append the seal, sync.

    Idempotent: a sealed file is only read. The caller must have fenced the epoch (no writer may live). Answers the
    segment, `torn` telling what was cut. Raises `JournalUnreadable`, OSError.
    """
    segment = read_segment(path)
    if segment.seal is not None:
        return segment
    end = segment.next_offset
    with path.open("r+b") as file:
        file.seek(end)
        cut = file.read()
        if cut:
            path.with_name(f"{path.name}.torn").write_bytes(cut)
            file.truncate(end)
        first = segment.header.first_seq
        seal = SealEntry(
            last_seq=first + len(segment.entries) - 1,
            count=len(segment.entries),
            sha256=sha256_of_prefix(path, end),
        )
        file.seek(end)
        file.write(frame_of(seal))
        file.flush()
        os.fsync(file.fileno())
    segment.seal = seal
    segment.next_offset = end + len(frame_of(seal))
    return segment
