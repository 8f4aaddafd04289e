"""Fixtures of the market's tests about money: a small town, and a folder for what it freezes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

import serving.leases
from model_store.blobs import FolderBlobs
from tests.marketplace.town import START, Town


@pytest.fixture
def began() -> int:
    """When the town begins. A module whose tests read what is stamped by the machine's clock says `now_ms()`."""
    return START


@pytest.fixture
def town(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: int) -> Iterator[Town]:
    """A town whose nodes' leases go by its clock."""
    town = Town(engine, tmp_path / "journal", now=began)
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    yield town
    town.admission.close()


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")
