"""The in-memory twin of the MLflow store: for tests and for a market without a registry server."""

from __future__ import annotations

import threading
from dataclasses import replace

from model_store.bundle import Bundle
from model_store.names import canonical
from model_store.store import StoredVersion, version_not_stored


class MemoryStore:
    """Implements `ModelStore`. Numbers are never used twice, as in MLflow."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, StoredVersion]] = {}
        self._last: dict[str, int] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    def create_pending(self, name: str, bundle: Bundle, *, publication: str) -> int:
        name = canonical(name)
        parent = bundle.manifest.parent
        with self._lock:
            number = self._last[name] = self._last.get(name, 0) + 1
            self._versions.setdefault(name, {})[number] = StoredVersion(
                name=name,
                number=number,
                digest=bundle.digest,
                publication=publication,
                pending=True,
                parent=f"{parent.name}@{parent.version}" if parent else "",
                relation=parent.relation if parent else "",
            )
        return number

    def confirm(self, name: str, number: int) -> None:
        name = canonical(name)
        with self._lock:
            found = self._versions.get(name, {}).get(number)
            if found is None:
                raise version_not_stored(name, number)
            self._versions[name][number] = replace(found, pending=False)

    def remove(self, name: str, number: int) -> None:
        name = canonical(name)
        with self._lock:
            self._versions.get(name, {}).pop(number, None)
            aliases = self._aliases.get(name, {})
            for alias in [alias for alias, at in aliases.items() if at == number]:
                del aliases[alias]

    def discard(self, publication: str) -> None:
        with self._lock:
            left = [each for versions in self._versions.values() for each in versions.values()]
        for version in left:
            if version.publication == publication:
                self.remove(version.name, version.number)

    def versions(self, name: str) -> list[StoredVersion]:
        with self._lock:
            return [version for _, version in sorted(self._versions.get(canonical(name), {}).items())]

    def pending(self) -> list[StoredVersion]:
        with self._lock:
            return [version for each in self._versions.values() for version in each.values() if version.pending]

    def set_alias(self, name: str, alias: str, number: int) -> None:
        name = canonical(name)
        with self._lock:
            if number not in self._versions.get(name, {}):
                raise version_not_stored(name, number)
            self._aliases.setdefault(name, {})[alias] = number

    def delete_alias(self, name: str, alias: str) -> None:
        with self._lock:
            self._aliases.get(canonical(name), {}).pop(alias, None)

    def aliases(self, name: str) -> dict[str, int]:
        with self._lock:
            return dict(self._aliases.get(canonical(name), {}))
