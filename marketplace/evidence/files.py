"""Evidence as files: taken in once, counted against a quota, kept for the years that a programme states."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath

from sqlmodel import Session, col, func, select

from marketplace.clock import policy_date
from marketplace.evidence.kinds import SUFFIX
from marketplace.evidence.tables import EvidenceFile
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.organisations.tables import Organisation
from model_store.errors import BadInput, Conflict, NotFound, TooLarge

MAX_FILES = 100  # of one application, subsidy or invoice
MAX_NAME = 120


@dataclass(frozen=True, slots=True)
class Taken:
    """A file whose content lies among the blobs already."""

    sha256: str
    kind: str
    size_bytes: int
    name: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a file is handed in for, by whom, under which code, and how long it is to be kept."""

    of: str
    id: str
    organisation_id: str
    code: str
    retention_years: int


def add_file(
    session: Session, subject: Subject, taken: Taken, *, quota_bytes: int, actor: str, at_ms: int
) -> EvidenceFile:
    """`Conflict` EVIDENCE_TWICE, EVIDENCE_FULL; `TooLarge` EVIDENCE_QUOTA; `BadInput` EVIDENCE_EMPTY."""
    if not taken.size_bytes:
        raise BadInput("EVIDENCE_EMPTY", zh="文件是空的", en="the file is empty", remedy_zh="请选择正确的文件",
                       remedy_en="choose the right file", field="file")  # fmt: skip
    held = live_files(session, [subject.id])
    if any(each.sha256 == taken.sha256 and each.code == subject.code for each in held):
        raise Conflict("EVIDENCE_TWICE", zh="该文件已在此项材料中", en="this very file is there already",
                       remedy_zh="无需再次上传", remedy_en="it need not be sent again", field="file")  # fmt: skip
    if len(held) >= MAX_FILES:
        raise Conflict("EVIDENCE_FULL", zh=f"最多 {MAX_FILES} 个文件", en=f"at most {MAX_FILES} files",
                       remedy_zh="请合并或撤回不需要的文件", remedy_en="join some, or withdraw what is not needed",
                       field="file")  # fmt: skip
    _check_quota(session, subject.organisation_id, taken.size_bytes, quota_bytes)
    row = EvidenceFile(
        id=new_id("evf"),
        of=subject.of,
        subject_id=subject.id,
        organisation_id=subject.organisation_id,
        code=subject.code,
        name=shown_name(taken.name),
        kind=taken.kind,
        size_bytes=taken.size_bytes,
        sha256=taken.sha256,
        uploaded_by=actor,
        created_at_ms=at_ms,
        keep_until=decide_keep_until(policy_date(at_ms), subject.retention_years).isoformat(),
    )
    session.add(row)
    session.flush()
    _record(session, row, "evidence", actor)
    return row


def _check_quota(session: Session, organisation_id: str, size_bytes: int, quota_bytes: int) -> None:
    session.exec(select(Organisation.id).where(Organisation.id == organisation_id).with_for_update()).all()
    own = select(func.sum(EvidenceFile.size_bytes)).where(
        EvidenceFile.organisation_id == organisation_id, col(EvidenceFile.deleted_at_ms).is_(None)
    )
    used = int(session.exec(own).one() or 0)
    if used + size_bytes > quota_bytes:
        raise TooLarge(
            "EVIDENCE_QUOTA",
            zh=f"本单位的材料已占用 {used} 字节, 上限 {quota_bytes} 字节",
            en=f"the organisation's evidence takes {used} bytes of {quota_bytes}",
            remedy_zh="请压缩文件, 或请运营方调整 ALGOMART_EVIDENCE_QUOTA_BYTES",
            remedy_en="make the file smaller, or ask the operator to raise ALGOMART_EVIDENCE_QUOTA_BYTES",
            field="file",
            details={"used_bytes": used, "quota_bytes": quota_bytes},
        )


def decide_keep_until(day: date, years: int) -> date:
    """The last day of keeping; 29 February ends on the 28th where there is none."""
    try:
        return day.replace(year=day.year + years)
    except ValueError:
        return day.replace(year=day.year + years, day=28)


def shown_name(name: str) -> str:
    """The last part of what the file was called, without control or direction characters, bounded."""
    last = PurePosixPath(name.replace("\\", "/")).name
    clean = "".join(c for c in last if unicodedata.category(c)[0] != "C" and c not in '"<>|').strip()
    return clean[-MAX_NAME:] or "file"


def saved_name(row: EvidenceFile) -> str:
    """A plain ASCII name for a download; its ending is the content's kind."""
    return f"{row.code}-{row.id}.{SUFFIX.get(row.kind, row.kind)}"


def withdraw_file(session: Session, row: EvidenceFile, *, actor: str, at_ms: int) -> EvidenceFile:
    """It counts no longer; it is kept as long as it was to be."""
    if row.withdrawn_at_ms is None:
        row.withdrawn_at_ms, row.withdrawn_by = at_ms, actor
        _record(session, row, "evidence-withdraw", actor)
    return row


def delete_file(session: Session, row: EvidenceFile, *, actor: str, at_ms: int) -> EvidenceFile:
    """`Conflict` EVIDENCE_RETAINED before its years are over. The caller removes the blob after the commit."""
    if policy_date(at_ms).isoformat() <= row.keep_until:
        raise Conflict(
            "EVIDENCE_RETAINED",
            zh=f"该文件须保存至 {row.keep_until}, 不能删除",
            en=f"this file is kept until {row.keep_until} and cannot be deleted before",
            remedy_zh="期满后可由运营方删除",
            remedy_en="the operator may delete it after that day",
            details={"keep_until": row.keep_until},
        )
    if row.deleted_at_ms is None:
        row.deleted_at_ms, row.deleted_by = at_ms, actor
        _record(session, row, "evidence-delete", actor)
    return row


def get_file(session: Session, file_id: str, organisation_id: str | None) -> EvidenceFile:
    """Locked; within one organisation, or any (None). `NotFound` EVIDENCE_NOT_FOUND, also where it was deleted."""
    row = session.exec(select(EvidenceFile).where(EvidenceFile.id == file_id).with_for_update()).first()
    if row is None or organisation_id not in (None, row.organisation_id) or row.deleted_at_ms is not None:
        raise NotFound(
            "EVIDENCE_NOT_FOUND",
            zh=f"没有材料文件“{file_id[:60]}”",
            en=f"there is no evidence {file_id[:60]!r}",
            remedy_zh="请查看申请页上的材料清单",
            remedy_en="see the list on the application's page",
        )
    return row


def files_of(session: Session, subject_ids: Iterable[str]) -> list[EvidenceFile]:
    """Every file ever handed in for these, oldest first."""
    query = select(EvidenceFile).where(col(EvidenceFile.subject_id).in_(list(subject_ids)))
    return list(session.exec(query.order_by(col(EvidenceFile.created_at_ms), col(EvidenceFile.id))))


def live_files(session: Session, subject_ids: Iterable[str]) -> list[EvidenceFile]:
    """Those that count: neither withdrawn nor deleted."""
    return [row for row in files_of(session, subject_ids) if row.withdrawn_at_ms is None and row.deleted_at_ms is None]


def file_view(row: EvidenceFile) -> dict[str, object]:
    """A file as JSON, with its hash."""
    state = "deleted" if row.deleted_at_ms else "withdrawn" if row.withdrawn_at_ms else "kept"
    names = (
        "id", "of", "subject_id", "organisation_id", "code", "name", "kind", "size_bytes", "sha256", "uploaded_by",
        "created_at_ms", "keep_until",
    )  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"state": state}


def told(row: EvidenceFile) -> dict[str, object]:
    """What a frozen claim says of a file."""
    return {"code": row.code, "kind": row.kind, "size_bytes": row.size_bytes, "sha256": row.sha256}


def _record(session: Session, row: EvidenceFile, action: str, actor: str) -> None:
    session.add(row)
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action=f"{row.of}.{action}",
        subject=row.subject_id,
        file=row.id,
        code=row.code,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
    )
