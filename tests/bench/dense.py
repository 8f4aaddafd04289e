"""Dense models of several costs: what a request costs beside its run, and from which run on that no longer matters."""

from __future__ import annotations

from pathlib import Path

from model_store.bundle import Bundle
from tests.bench.density import FEATURES, mlp, write_bundle

WIDTHS = (256, 512, 1024, 1536)  # of two hidden layers; 32 rows take some 0.1, 0.3, 1 and 3 ms on one core
ROWS = 32
INPUTS = FEATURES


def name_of(width: int) -> str:
    return f"benchlab/dense-{width}"


def dense_bundle(folder: Path, width: int) -> Bundle:
    """[n,16] → [n,3], sealed."""
    return write_bundle(folder, name_of(width), mlp((width, width), width))
