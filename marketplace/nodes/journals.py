"""Journals of nodes elsewhere, copied here byte for byte: what arrives is appended where it belongs, or refused.

A node sends only what its own disk has synced, and what is here is synced before it is acknowledged. So the copy is
always a prefix of the node's file, ends between two records, and may be sent again from wherever it ends.
"""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c

from model_store.errors import BadInput, Conflict
from serving.journal import JournalUnreadable, segment_path
from serving.journal_format import read_header


def size_of(folder: Path, node: str, epoch: int) -> int:
    """Bytes of that journal that are here."""
    path = segment_path(folder, node, epoch)
    return path.stat().st_size if path.exists() else 0


def append(folder: Path, node: str, epoch: int, offset: int, crc32c: int, content: bytes) -> int:
    """Append `content`, which begins at `offset` of the node's file; answers the size here, on the disk.

    One writer at a time for a journal. Raises `Conflict` JOURNAL_OFFSET (details `size`: where to go on), `BadInput`
    JOURNAL_DAMAGED where the checksum is not that of the content, JOURNAL_FOREIGN where it is another node's file.
    """
    path = segment_path(folder, node, epoch)
    size = size_of(folder, node, epoch)
    if offset != size:
        raise Conflict(
            "JOURNAL_OFFSET",
            zh=f"日志已收到 {size} 字节, 不能从 {offset} 处续传",
            en=f"{size} bytes of this journal are here; what begins at {offset} cannot follow them",
            remedy_zh=f"请从 {size} 处续传",
            remedy_en=f"go on at {size}",
            field="offset",
            details={"size": size},
        )
    if google_crc32c.value(content) != crc32c:
        raise BadInput(
            "JOURNAL_DAMAGED",
            zh="日志在传输中损坏, 未写入",
            en="these bytes are not those that were sent; nothing was written",
            remedy_zh="请重新发送",
            remedy_en="send them again",
            field="crc32c",
        )
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, content)
        os.fdatasync(descriptor)
        if written != len(content):
            os.ftruncate(descriptor, size)
            raise OSError(f"{path}: no space left")
    finally:
        os.close(descriptor)
    if not offset:
        _check_header(path, node, epoch)
    return size + len(content)


def _check_header(path: Path, node: str, epoch: int) -> None:
    try:
        header, _ = read_header(path)
        if (header.node, header.epoch) == (node, epoch):
            return
        found = f"{header.node}-{header.epoch}"
    except JournalUnreadable as error:
        found = str(error)
    path.unlink()
    raise BadInput(
        "JOURNAL_FOREIGN",
        zh=f"这不是节点 {node} 第 {epoch} 期的日志 ({found[:100]})",
        en=f"this is not the journal of epoch {epoch} of node {node} ({found[:100]})",
        remedy_zh="请检查节点的数据目录是否属于该节点",
        remedy_en="see that the node's data folder is that node's",
        field="journal",
    )
