"""Sealed test sets: rows that the operator keeps, on which a version's precision is measured rather than declared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.manifest import Manifest

MAX_SEALED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SealedSet:
    """One registered set. `path`: JSON `{"rows": [{feature: value}], "targets": [label or number]}`, never shown.

    It fits a version of the same task and, where `family` is given, of the same family.
    """

    name: str
    task: str
    path: Path
    family: str = ""

    def fits(self, manifest: Manifest) -> bool:
        return self.task == manifest.task and (not self.family or self.family == manifest.family)

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "task": self.task, "family": self.family, "path": str(self.path)}


def sealed_set_of(data: dict[str, Any]) -> SealedSet:
    return SealedSet(name=data["name"], task=data["task"], family=data["family"], path=Path(data["path"]))


def read_sealed(sealed: SealedSet) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows and targets of equal number. Raises ValueError where the file is not that."""
    if sealed.path.stat().st_size > MAX_SEALED_BYTES:
        raise ValueError(f"{sealed.name}: larger than {MAX_SEALED_BYTES} bytes")
    data = json.loads(sealed.path.read_bytes())
    rows, targets = data["rows"], data["targets"]
    if not isinstance(rows, list) or len(rows) != len(targets) or not rows:
        raise ValueError(f"{sealed.name}: rows and targets do not match")
    return rows, targets
