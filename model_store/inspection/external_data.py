"""Weights outside the graph's file: where they may lie. A location is a stranger's path, judged before it is opened."""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path, PurePosixPath

import onnx

from model_store.inspection.report import Findings

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_DRIVE = re.compile(r"[A-Za-z]:")
# Bits of one element; types below a byte are packed. https://onnx.ai/onnx/repo-docs/IR.html#tensors
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


def check_external(root: Path, tensor: onnx.TensorProto, elements: int, where: str, findings: Findings) -> int:
    """Judge one tensor's external data: a plain relative path to a regular file in the bundle, and a range within it.

    Returns the bytes it takes; 0 where it is refused.
    """
    entries = [(item.key, item.value) for item in tensor.external_data]
    fields = dict(entries)
    if len(fields) != len(entries) or not fields.keys() <= _KEYS:
        _refuse("键重复或未知", "a key is repeated or unknown", where, findings)
        return 0
    location = fields.get("location", "")
    path = locate(root, location)
    if path is None:
        findings.error(
            "EXTERNAL_DATA_OUTSIDE",
            f"外部权重路径 {location[:120]!r} 指向包外或不是普通的相对路径",
            f"external data path {location[:120]!r} points outside the bundle or is no plain relative path",
            "请把权重文件放在 model.onnx 旁, 用不含 .. 的相对路径",
            "put the weight file beside model.onnx and name it by a relative path without ..",
            where,
        )
        return 0
    if not is_regular_inside(root, path):
        findings.error(
            "EXTERNAL_DATA_MISSING",
            f"外部权重 {location[:120]!r} 不存在, 或是链接",
            f"external data {location[:120]!r} does not exist, or is a link",
            "请把权重文件 (不是链接) 一并放入包内",
            "put the weight file itself, not a link, into the bundle",
            where,
        )
        return 0
    bits = _BITS.get(tensor.data_type)
    offset, length = _number(fields.get("offset", "0")), _number(fields.get("length", ""))
    if bits is None or offset is None or ("length" in fields and length is None):
        _refuse("偏移、长度或类型无效", "offset, length or type is invalid", where, findings)
        return 0
    needed = math.ceil(elements * bits / 8)
    size = path.stat().st_size
    if (length is not None and length != needed) or offset + needed > size:
        _refuse(
            f"需要 {needed} 字节, 声明长度 {length}, 偏移 {offset}, 文件 {size} 字节",
            f"{needed} bytes needed, length {length}, offset {offset}, file of {size} bytes",
            where,
            findings,
        )
        return 0
    return needed


def locate(root: Path, location: str) -> Path | None:
    """The path that `location` names below `root`, judged as text; None for whatever is not plainly inside."""
    if not location or len(location) > 512 or not location.isprintable():
        return None
    if "\\" in location or _DRIVE.match(location) or location.startswith(("/", "~")):
        return None
    parts = PurePosixPath(location).parts
    if not parts or any(part in ("..", ".") for part in location.split("/")[:-1]) or parts[-1] in ("..", "."):
        return None
    return root.joinpath(*parts)


def is_regular_inside(root: Path, path: Path) -> bool:
    """A regular file, reached from `root` over real folders only: a link anywhere on the way counts as outside."""
    current = root
    for part in path.relative_to(root).parts:
        current = current / part
        try:
            mode = current.lstat().st_mode
        except (OSError, ValueError):
            return False
        if stat.S_ISLNK(mode):
            return False
    return stat.S_ISREG(mode)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def _refuse(zh: str, en: str, where: str, findings: Findings) -> None:
    findings.error(
        "EXTERNAL_DATA_INVALID",
        f"外部权重声明无效: {zh}",
        f"the declaration of external data is invalid: {en}",
        "请用 onnx.save_model(save_as_external_data=True) 重新保存",
        "save again with onnx.save_model(save_as_external_data=True)",
        where,
    )
