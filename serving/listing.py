"""Which bundles a lone node lists: a bundle itself, or the bundle folders and zips in a folder.

Ten thousand of them are to be ready within a second: for each there are a few system calls and strings, no more.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from model_store.bundle import MANIFEST, MODEL, Bundle, open_bundle_with_facts, unpack
from model_store.errors import Refusal
from serving.listing_index import Entries, Known, known_of, read_index, write_index
from serving.memory_admission import FolderBundles

_log = logging.getLogger("algomart.node")


class Listing:
    """Adds what lies in a folder to `bundles`, adapters after their bases; what is broken is left out and said.

    `home`: where zips are unpacked and the folder's index is kept. `names`: name@version of what was added.
    """

    def __init__(self, bundles: FolderBundles, home: Path, *, trusted: bool, owner: str) -> None:
        self._bundles, self._home, self._trusted, self._owner = bundles, home, trusted, owner
        self._adapters: list[Bundle] = []
        self._begun_ns = time.time_ns()
        self.names: list[str] = []

    def take(self, folder: Path) -> None:
        """A bundle, a zip of one, or a folder of both; nothing where it is none of these."""
        if folder.suffix == ".zip" and folder.is_file():
            self._take_zip(folder)
        elif os.path.isfile(folder / MANIFEST):
            self._take_folder(folder)
        elif folder.is_dir():
            self._take_inside(folder)
        for adapter in self._adapters:
            try:
                served = self._bundles.add(adapter, trusted=self._trusted, owner=self._owner)
            except Refusal as refusal:
                _leave_out(adapter.path, refusal)
            else:
                self.names.append(f"{served.name}@{served.version}")

    def _take_inside(self, folder: Path) -> None:
        known = read_index(self._home, folder)
        found: Entries = {}
        with os.scandir(folder) as entries:
            inside = sorted(each.name for each in entries if each.name.endswith(".zip") or each.is_dir())
        for name in inside:
            path, entry = folder / name, known.get(name)
            if name.endswith(".zip") and path.is_file():
                self._take_zip(path)
            elif entry is not None and _is_as_known(f"{folder}/{name}", entry):
                self._add(entry.name, entry.digest, path)
                found[name] = entry
            elif (entry := self._take_folder(path)) is not None:
                found[name] = entry
        if found != known:
            write_index(self._home, folder, found)

    def _take_zip(self, path: Path) -> None:
        try:
            self._take_bundle(unpack(path, self._home / "bundles" / path.stem, seal_if_unsealed=True))
        except Refusal as refusal:
            _leave_out(path, refusal)

    def _take_folder(self, path: Path) -> Known | None:
        """What the index may keep of it. A folder without a manifest is no bundle, and nothing need be said of it."""
        try:
            bundle, facts = open_bundle_with_facts(path)
        except Refusal as refusal:
            if os.path.lexists(path / MANIFEST) or not path.is_dir():
                _leave_out(path, refusal)
            return None
        except OSError as error:
            _leave_out(path, error)
            return None
        if not self._take_bundle(bundle):
            return None
        return known_of(facts, bundle.manifest.name, bundle.digest, self._begun_ns)

    def _take_bundle(self, bundle: Bundle) -> bool:
        """False for an adapter, which waits for its base."""
        if bundle.manifest.adapter_of is not None:
            self._adapters.append(bundle)
            return False
        self._add(bundle.manifest.name, bundle.digest, bundle.path)
        return True

    def _add(self, name: str, digest: str, folder: Path) -> None:
        served = self._bundles.add_checked(name, digest, folder, trusted=self._trusted, owner=self._owner)
        self.names.append(f"{name}@{served.version}")


def _is_as_known(place: str, known: Known) -> bool:
    try:
        return known.is_of(os.lstat(f"{place}/{MANIFEST}")) and os.path.isfile(f"{place}/{MODEL}")
    except OSError:
        return False


def _leave_out(path: Path, why: Exception) -> None:
    _log.error("%s is left out: %s", path, why)
