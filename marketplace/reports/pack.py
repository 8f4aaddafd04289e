"""One report as a file, or all of them in a zip with a manifest. The same `as_of` gives the same bytes, for ever."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session

from marketplace.clock import end_of_day_ms, start_of_day_ms
from marketplace.reports.declared import Report, Row
from marketplace.reports.facts import Facts
from marketplace.reports.refusals import as_of_invalid, as_of_too_late, from_invalid, report_not_found
from marketplace.reports.register import REPORTS
from marketplace.reports.writing import EPOCH, WRITERS, iso
from marketplace.vouchers.rollout import get_programme
from model_store.blobs import Blobs

FORMAT = "algomart-reports/1"
SETTLE_S = 10  # a transaction stamps its rows before it commits; none takes this long


def find(name: str) -> Report:
    """`NotFound` REPORT_NOT_FOUND."""
    if name not in REPORTS:
        raise report_not_found(name)
    return REPORTS[name]


def instant_of(as_of: str, now_ms: int) -> int:
    """Unix ms of a day (its end, Asia/Shanghai) or of an instant with its zone; "": SETTLE_S ago.

    `BadInput` AS_OF_INVALID, and AS_OF_TOO_LATE for an instant at which rows may still be under way.
    """
    latest = now_ms - SETTLE_S * 1000
    if not as_of:
        return latest
    try:
        if len(as_of) == len("2026-10-01"):
            found = end_of_day_ms(date.fromisoformat(as_of))
        else:
            moment = datetime.fromisoformat(as_of.replace(" ", "+"))  # a query string's bare plus
            if moment.tzinfo is None:
                raise as_of_invalid()
            found = round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise as_of_invalid() from None
    if found > latest:
        raise as_of_too_late(SETTLE_S)
    return found


def facts_of(session: Session, blobs: Blobs, as_of_ms: int, programme: str = "", from_day: str = "") -> Facts:
    """What reports are made of. `programme` is an id or code. `NotFound` PROGRAMME_NOT_FOUND,
    `BadInput` REPORT_PERIOD."""
    from_ms = 0
    if from_day:
        try:
            from_ms = start_of_day_ms(date.fromisoformat(from_day))
        except ValueError:
            raise from_invalid() from None
        if from_ms > as_of_ms:
            raise from_invalid()
    programme_id = get_programme(session, programme).id if programme else ""
    return Facts(session, blobs, as_of_ms, programme_id, from_ms)


def meta_of(facts: Facts) -> dict[str, Any]:
    return {
        "as_of": iso(facts.as_of_ms),
        "as_of_ms": facts.as_of_ms,
        "programme": facts.programme_id or None,
        "from": iso(facts.from_ms) if facts.from_ms else None,
        "code_version": importlib.metadata.version("algomart"),
    }


def write_report(report: Report, facts: Facts, form: str, folder: Path) -> tuple[Path, int]:
    """The file and its number of rows. `Conflict` REPORT_TOO_LONG for XLSX."""
    path, rows, _ = _write(report, facts, form, folder)
    return path, rows


def _write(report: Report, facts: Facts, form: str, folder: Path) -> tuple[Path, int, int]:
    """The file, its number of rows, and in how many of them something does not agree."""
    path, differing = folder / f"{report.name}.{form}", 0

    def judged() -> Iterator[Row]:
        nonlocal differing
        for row in report.rows(facts):
            differing += report.differs(row)
            yield row

    return path, WRITERS[form](report, judged(), path, meta_of(facts)), differing


def write_pack(facts: Facts, folder: Path, forms: Sequence[str] = ("csv",)) -> Path:
    """`reports.zip` in `folder`: each report in these forms, and `manifest.json`. Of reports that judge it has in how
    many rows something does not agree (`differences`)."""
    listed: list[dict[str, Any]] = []
    target = folder / "reports.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for report in REPORTS.values():
            for form in forms:
                path, rows, differing = _write(report, facts, form, folder)
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                _add(archive, path)
                listed.append(
                    {
                        "file": path.name,
                        "sha256": digest,
                        "bytes": path.stat().st_size,
                        "rows": rows,
                        **({"differences": differing} if report.verdict else {}),
                        "reproducible": report.reproducible,
                        "note_zh": report.note_zh,
                        "note_en": report.note_en,
                    }
                )
                path.unlink()
        manifest = {"format": FORMAT, **meta_of(facts), "files": listed}
        text = json.dumps(manifest, ensure_ascii=False, sort_keys=True, indent=1) + "\n"
        entry = zipfile.ZipInfo("manifest.json", EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(entry, text)
    return target


def differences_in(pack: Path) -> dict[str, int]:
    """File of a pack → in how many of its rows something does not agree; only where there are any."""
    with zipfile.ZipFile(pack) as archive:
        files = json.loads(archive.read("manifest.json"))["files"]
    return {each["file"]: each["differences"] for each in files if each.get("differences")}


def _add(archive: zipfile.ZipFile, path: Path) -> None:
    entry = zipfile.ZipInfo(path.name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as writer:
        shutil.copyfileobj(source, writer)
