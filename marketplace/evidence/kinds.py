"""What kind of file an upload is, by its content alone: a name or a declared type may say anything.

Nothing is unpacked or drawn here: only signatures, ends and the lists of entries of zips are read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from model_store.errors import Unprocessable

FileKind = Literal["pdf", "png", "jpeg", "xlsx", "ofd"]
MEDIA: dict[str, str] = {
    "pdf": "application/pdf",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "ofd": "application/ofd",
}
SUFFIX = {"jpeg": "jpg"}
_TAIL = 2_048  # where a PDF says that it is over
_ENTRIES = 20_000


def kind_of(path: Path, allowed: tuple[str, ...] = ()) -> str:
    """pdf | png | jpeg | xlsx | ofd. `Unprocessable` EVIDENCE_TYPE where it is none of them, or none of `allowed`."""
    found = _kind(path)
    wanted = allowed or tuple(MEDIA)
    if found not in wanted:
        names = ", ".join(each.upper() for each in wanted)
        raise Unprocessable(
            "EVIDENCE_TYPE",
            zh=f"文件内容不是可接受的类型 ({names})",
            en=f"the content of the file is none of {names}",
            remedy_zh="类型按文件内容判断, 与文件名无关; 含宏的表格不接受",
            remedy_en="the content decides, not the name; workbooks with macros are not taken",
            field="file",
            details={"found": found, "allowed": list(wanted)},
        )
    return found


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0, 2)
        size = file.tell()
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if head.startswith(b"%PDF-") and b"%%EOF" in tail:
        return "pdf"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and b"IEND" in tail[-16:]:
        return "png"
    if head.startswith(b"\xff\xd8\xff") and b"\xff\xd9" in tail:
        return "jpeg"
    return _kind_of_zip(path) if head.startswith(b"PK\x03\x04") else ""


def _kind_of_zip(path: Path) -> str:
    """A workbook without macros, or an OFD document, by the entries that their standards require."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    if len(names) > _ENTRIES:
        return ""
    if {"[Content_Types].xml", "xl/workbook.xml"} <= names and "xl/vbaProject.bin" not in names:
        return "xlsx"
    return "ofd" if "OFD.xml" in names else ""
