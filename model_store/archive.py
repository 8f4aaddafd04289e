"""Unpacking a stranger's zip: every entry is judged before a byte of it is written, and counted while it is."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from model_store.bundle import LITTER, MANIFEST, Limits, check_file_name
from model_store.errors import BadInput, TooLarge, Unprocessable

_CHUNK = 1 << 20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def extract(zip_path: Path, folder: Path, limits: Limits) -> None:
    """Extract into the existing, empty `folder`.

    A single top folder around everything is dropped, and what macOS adds (`__MACOSX/`, `.DS_Store`) is left out.
    Raises `Unprocessable` BUNDLE_NOT_ZIP; `BadInput` ZIP_ENTRY_REFUSED, FILE_NAME_INVALID; `TooLarge`
    BUNDLE_TOO_MANY_FILES, BUNDLE_TOO_LARGE, ZIP_BOMB.
    """
    try:
        with zipfile.ZipFile(zip_path) as archive:
            wanted = plan_entries(archive.infolist(), limits)
            left = limits.max_total_bytes
            for entry, name in wanted:
                left -= _write_entry(archive, entry, folder / name, min(left, limits.max_file_bytes))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeError, OverflowError) as error:
        raise _not_zip(str(error)) from error
    except zipfile.zlib.error as error:  # type: ignore[attr-defined]  # zipfile lets zlib's own error through
        raise _not_zip(str(error)) from error


def plan_entries(entries: list[zipfile.ZipInfo], limits: Limits) -> list[tuple[zipfile.ZipInfo, str]]:
    """Which entries are written, under which names. Pure: it reads the zip's directory only."""
    if len(entries) > 2 * limits.max_files:
        raise _too_many(len(entries), limits.max_files)
    real = [each for each in entries if not each.is_dir() and not _is_litter(each.filename)]
    if len(real) > limits.max_files:
        raise _too_many(len(real), limits.max_files)
    top = _common_top([each.filename for each in real])
    planned: list[tuple[zipfile.ZipInfo, str]] = []
    seen: set[str] = set()
    for entry in real:
        if entry.header_offset < 0:  # zipfile would seek there
            raise _not_zip("an entry begins before the file")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refused(entry.filename, "它是链接或特殊文件", "it is a link or a special file")
        if entry.flag_bits & 0x1:
            raise _refused(entry.filename, "它已加密", "it is encrypted")
        if entry.compress_type not in _METHODS:
            raise _refused(entry.filename, "压缩方式不支持", "its compression method is not supported")
        name = check_file_name(entry.filename.removeprefix(top))
        if name.lower() in seen:
            raise _refused(entry.filename, "名称重复", "its name occurs twice")
        seen.add(name.lower())
        if entry.file_size > limits.max_file_bytes:
            raise _too_large(limits.max_file_bytes)
        planned.append((entry, name))
    total = sum(entry.file_size for entry, _ in planned)
    packed = sum(entry.compress_size for entry, _ in planned)
    if total > limits.max_total_bytes:
        raise _too_large(limits.max_total_bytes)
    if total > limits.ratio_free_bytes and total > limits.max_ratio * max(packed, 1):
        raise TooLarge(
            "ZIP_BOMB",
            zh=f"压缩包展开后是原来的 {total // max(packed, 1)} 倍, 上限 {limits.max_ratio} 倍",
            en=f"the archive grows {total // max(packed, 1)} times; at most {limits.max_ratio} times is accepted",
            remedy_zh="请检查包内文件",
            remedy_en="check what is in the archive",
            field="file",
        )
    return planned


def _write_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, allowed: int) -> int:
    """Write one entry, trusting no size in the directory; returns the bytes written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            written += len(chunk)
            if written > allowed:
                raise _too_large(allowed)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return written


def _is_litter(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1] in LITTER


def _common_top(names: list[str]) -> str:
    """`bundle/` where every file lies below one folder that holds the manifest, else ``."""
    if MANIFEST in names:
        return ""
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) == 1 and (top := next(iter(tops))) and f"{top}/{MANIFEST}" in names:
        return f"{top}/"
    return ""


def _not_zip(why: str) -> Unprocessable:
    return Unprocessable(
        "BUNDLE_NOT_ZIP",
        zh=f"文件不是完整的 zip 压缩包: {why[:120]}",
        en=f"the file is not a complete zip archive: {why[:120]}",
        remedy_zh="请重新打包并完整上传",
        remedy_en="pack it again and upload all of it",
        field="file",
    )


def _refused(name: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "ZIP_ENTRY_REFUSED",
        zh=f"压缩包中的 {name[:120]!r} 不被接受: {zh}",
        en=f"entry {name[:120]!r} of the archive is refused: {en}",
        remedy_zh="请只打包普通文件 (不加密, deflate 或不压缩)",
        remedy_en="pack plain files only (not encrypted, stored or deflated)",
        field=name[:120],
    )


def _too_many(found: int, allowed: int) -> TooLarge:
    return TooLarge(
        "BUNDLE_TOO_MANY_FILES",
        zh=f"包内有 {found} 个文件, 最多 {allowed} 个",
        en=f"{found} files in the bundle; at most {allowed}",
        remedy_zh="请减少文件数量",
        remedy_en="keep fewer files",
        field="file",
    )


def _too_large(allowed: int) -> TooLarge:
    return TooLarge(
        "BUNDLE_TOO_LARGE",
        zh=f"包展开后超过 {allowed} 字节",
        en=f"unpacked, the bundle is over {allowed} bytes",
        remedy_zh="请减小模型, 或向运营方申请更高的上限",
        remedy_en="make the model smaller, or ask the operator for a higher limit",
        field="file",
    )
