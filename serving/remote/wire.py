"""What passes between a market and its nodes elsewhere, as JSON: the catalogue, changes, principals, leases.

A bundle's folder goes over the wire as its digest; each side puts its own folder before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from serving.catalogue import Entry, Split
from serving.metering import Lease
from serving.ports import Principal, ServedVersion

PREFIX = "/api/v1/node"


class WireEntry(msgspec.Struct):
    """A listing as a node serves it."""

    listing_id: str
    owner: str
    name: str
    private: bool
    versions: dict[int, tuple[str, ServedVersion]]
    aliases: dict[str, int]
    split: Split | None = None


class WireCatalogue(msgspec.Struct):
    """Entries, and the place in the feed of changes that they were read at (or after)."""

    start: str
    number: int
    entries: list[WireEntry]


class WireChange(msgspec.Struct):
    """`kind`: catalogue, terms or keys; no `ids`: all of them."""

    kind: str
    ids: list[str] = []


class WireChanges(msgspec.Struct):
    """Changes since the number asked with; `all`: they are not known any more, read everything again."""

    start: str
    number: int
    all: bool
    changes: list[WireChange] = []


class LeaseAsk(msgspec.Struct, forbid_unknown_fields=True):
    """What `Admission.open_lease` is asked with."""

    key_id: str
    organisation: str
    listing_id: str
    epoch: int
    need_micro: int
    purpose: str
    held: dict[str, int]
    clock_ms: int = 0  # what the node's clock says; 0: not told


def encode_catalogue(start: str, number: int, entries: Iterable[Entry]) -> bytes:
    found = [
        WireEntry(each.listing_id, each.owner, each.name, each.private, each.versions, each.aliases, each.split)
        for each in entries
    ]
    return msgspec.json.encode(WireCatalogue(start, number, found), enc_hook=_folder_name)


def decode_catalogue(content: bytes, bundles: Path) -> tuple[str, int, list[Entry]]:
    """Start, number and entries, their bundles under `bundles`. Raises `msgspec.DecodeError`."""

    def folder(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value.isalnum():
            return bundles / value
        raise msgspec.ValidationError("not the name of a bundle's folder")

    found = msgspec.json.decode(content, type=WireCatalogue, dec_hook=folder)
    entries = [
        Entry(each.listing_id, each.owner, each.name, each.private, each.versions, each.aliases, each.split)
        for each in found.entries
    ]
    return found.start, found.number, entries


def _folder_name(value: Any) -> str:
    if isinstance(value, Path):
        return value.name
    raise NotImplementedError(type(value).__name__)


def principal_of(content: bytes) -> Principal:
    """Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(content, type=Principal)


def lease_of(content: bytes) -> Lease:
    """Raises `msgspec.DecodeError`."""
    return msgspec.json.decode(content, type=Lease)
