"""The store port: which versions of a model there are, their aliases and lineage. MLflow is the system of record.

A version is *pending* from its creation until the database row that makes it visible exists; then it is confirmed.
What a crash leaves pending is found by `pending()` and finished or removed by the market's reconciler. Names are
accepted in either spelling. `MlflowStore` is the real one, `MemoryStore` its twin; one contract suite holds both to
this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from model_store.bundle import Bundle
from model_store.errors import NotFound


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version as the store knows it. `parent` is "vendor/name@version" or ""."""

    name: str  # vendor/name
    number: int
    digest: str
    publication: str
    pending: bool
    parent: str = ""
    relation: str = ""
    tags: dict[str, str] = field(default_factory=dict)


class ModelStore(Protocol):
    def create_pending(self, name: str, bundle: Bundle, *, publication: str) -> int:
        """Register the bundle as the next version of `name`, tagged pending, its files downloadable; the number.

        Raises `Unavailable` REGISTRY_UNAVAILABLE where the store cannot be reached.
        """

    def confirm(self, name: str, number: int) -> None:
        """Drop the pending tag."""

    def remove(self, name: str, number: int) -> None:
        """Delete the version and what `create_pending` kept for it; fine if it is not there. Its number stays used."""

    def discard(self, publication: str) -> None:
        """Remove whatever that publication left, also where it broke off halfway; fine if that is nothing."""

    def versions(self, name: str) -> list[StoredVersion]:
        """Every version, oldest first; [] for an unknown name."""

    def pending(self) -> list[StoredVersion]:
        """Every pending version of every model."""

    def set_alias(self, name: str, alias: str, number: int) -> None: ...

    def delete_alias(self, name: str, alias: str) -> None: ...

    def aliases(self, name: str) -> dict[str, int]:
        """Alias → version number; {} for an unknown name."""


def version_not_stored(name: str, number: int) -> NotFound:
    return NotFound(
        "VERSION_NOT_FOUND",
        zh=f"登记库中没有 {name} 的版本 {number}",
        en=f"the registry has no version {number} of {name}",
        remedy_zh="请查看该模型的现有版本",
        remedy_en="see the versions that the model has",
        field="version",
    )
