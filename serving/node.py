"""A lone serving node: the data plane over a folder of bundles, with one key of its own and no market.

What it does: Open Inference and `/v1/use` on ONNX Runtime, limits, deadlines, metrics, a journal of every call. What it
does not: prices, vouchers, ledger, choosing, adapting; those are the market's. It needs the base install only.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from model_store.errors import NotFound
from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.journal import JournalWriter
from serving.listing import Listing
from serving.memory_admission import FolderBundles, MemoryAdmission
from serving.ports import Ports, Principal
from serving.settings import ServingSettings

NODE = "alone"
OWNER = "org_node"
KEY_FILE = "node-key.json"


@dataclass(frozen=True, slots=True)
class Node:
    """What `algomart serve` runs: the application, its key, and the models by name."""

    app: ServingApp
    key: str
    key_path: Path
    models: tuple[str, ...]


def open_node(
    folder: Path,
    home: Path,
    *,
    trusted: bool = False,
    keyless: bool = False,
    settings: ServingSettings = ServingSettings(),
) -> Node:
    """Serve every bundle under `folder` (a bundle itself, or bundle folders and zips in it), adapters on their bases.

    `home` keeps the key (0600), unpacked zips, the index of the folder, and the journal. `trusted`: run the graphs in
    this process instead of the limited worker. `keyless`: programs of this machine may call without the key; listen on
    loopback only (the caller sees to it). Raises `NotFound` NO_BUNDLES where there is none; a broken bundle is left out
    and said.
    """
    home.mkdir(parents=True, exist_ok=True)
    bundles = FolderBundles()
    listing = Listing(bundles, home, trusted=trusted, owner=OWNER)
    listing.take(folder)
    if not listing.names:
        raise NotFound(
            "NO_BUNDLES",
            zh=f"{folder} 中没有可用的模型包",
            en=f"there is no usable bundle in {folder}",
            remedy_zh="请给出一个模型包 (含 manifest.json 的文件夹或 zip), 或放有模型包的文件夹",
            remedy_en="name a bundle (a folder with manifest.json, or a zip), or a folder of bundles",
            field="folder",
        )
    key_path = home / KEY_FILE
    key = _key(key_path)
    principal = Principal("key_node", OWNER, "enterprise", frozenset({"use"}))
    ports = Ports(admission=MemoryAdmission(keys={key: principal}), bundles=bundles)
    journals = home / "journal"
    journals.mkdir(exist_ok=True)
    epoch = 1 + max((_epoch_of(path) for path in journals.iterdir()), default=0)
    plane = DataPlane(
        ports,
        replace(settings, mapped_folder=home / "mapped"),
        JournalWriter(journals, NODE, epoch),
    )
    app = ServingApp(plane, ports)
    app.anonymous = principal if keyless else None
    return Node(app, key, key_path, tuple(sorted(listing.names)))


def _key(path: Path) -> str:
    """The node's key: made at the first start, readable by its owner only."""
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    key = f"am_{secrets.token_urlsafe(32)}"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"key": key}, file)
    return key


def _epoch_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
