"""Row hashes: whether a factory's sample was already in a model's training set, told without giving a row away.

A bundle trained on public data carries `fingerprint/rows.u64`: the sorted 64-bit hashes of its training rows, as
little-endian unsigned integers. A sample whose hash is among them was trained on, so a metric on it proves nothing.

A row is hashed over its *features* only, in the manifest's order and canonically: numbers to seven significant digits
(so that a CSV round trip keeps the hash), text NFKC-normalised, case-folded and with single spaces, pictures by their
decoded pixels. Two different rows collide once in 2^64; one sample against a million rows: about 5e-14.
"""

from __future__ import annotations

import hashlib
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model_store.errors import Unprocessable
from model_store.manifest import Feature

ROWS_FILE = "fingerprint/rows.u64"
Hashes = npt.NDArray[np.uint64]
_LITTLE = np.dtype("<u8")
_MAX_PIXELS = 50_000_000
_SEPARATOR = b"\x1f"


def row_hash(row: Mapping[str, Any], features: Sequence[Feature]) -> int:
    """The 64-bit hash (BLAKE2b) of one row's features; a missing cell counts as empty."""
    digest = hashlib.blake2b(digest_size=8)
    for feature in features:
        digest.update(_canonical(row.get(feature.name), feature.kind))
        digest.update(_SEPARATOR)
    return int.from_bytes(digest.digest(), "little")


def row_hashes(rows: Iterable[Mapping[str, Any]], features: Sequence[Feature]) -> Hashes:
    """[N] hashes in the order of `rows`."""
    return np.fromiter((row_hash(row, features) for row in rows), np.uint64)


def split_fingerprint(hashes: Hashes) -> str:
    """SHA-256 (hex) over the sorted hashes: names a split, whatever the order of its rows."""
    return hashlib.sha256(np.sort(hashes).astype(_LITTLE).tobytes()).hexdigest()


def write_rows(folder: Path, hashes: Hashes) -> Path:
    """Write `fingerprint/rows.u64` into a bundle's folder: sorted, repeats once."""
    path = folder / ROWS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.unique(hashes).astype(_LITTLE).tobytes())
    return path


def read_rows(folder: Path) -> Hashes | None:
    """The sorted hashes of a bundle's training rows; None where it carries none.

    `Unprocessable` FINGERPRINT_INVALID where the file is not whole or not sorted.
    """
    path = folder / ROWS_FILE
    if not path.is_file():
        return None
    content = path.read_bytes()
    if len(content) % _LITTLE.itemsize == 0:
        hashes = np.frombuffer(content, _LITTLE).astype(np.uint64)
        if bool((hashes[1:] > hashes[:-1]).all()):
            return hashes
    raise Unprocessable(
        "FINGERPRINT_INVALID",
        zh=f"{ROWS_FILE} 不是有序的 64 位哈希",
        en=f"{ROWS_FILE} is not a sorted list of 64-bit hashes",
        remedy_zh="请重新生成该文件 (model_store.fingerprint.write_rows)",
        remedy_en="write the file again (model_store.fingerprint.write_rows)",
        field=ROWS_FILE,
    )


def trained_on(rows: Sequence[Mapping[str, Any]], features: Sequence[Feature], known: Hashes) -> npt.NDArray[np.bool_]:
    """[N] which rows are among `known`, the sorted hashes that `read_rows` gave."""
    hashes = row_hashes(rows, features)
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)


def _canonical(value: Any, kind: str) -> bytes:
    if value is None:
        return b""
    if kind in ("number", "integer"):
        return _number(value)
    if kind == "series":
        return b" ".join(_number(item) for item in value)
    if kind == "image":
        return _pixels(value)
    return " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split()).encode("utf-8", "surrogatepass")


def _number(value: Any) -> bytes:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value).encode("utf-8", "surrogatepass")
    if not math.isfinite(number):
        return b""
    return f"{number + 0.0:.7g}".encode()  # adding zero makes -0 a plain 0


def _pixels(value: Any) -> bytes:
    """The hash of a picture's decoded pixels, the same for every lossless encoding; of its bytes if it has none."""
    content = bytes(value) if isinstance(value, bytes | bytearray | memoryview) else str(value).encode()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                return hashlib.sha256(content).digest()
            plain = picture.convert("RGB")
            size = f"{plain.width}x{plain.height}:".encode()
            return hashlib.sha256(size + plain.tobytes()).digest()
    except (OSError, ValueError, Image.DecompressionBombError):
        return hashlib.sha256(content).digest()
