"""Findings, the contracts each is about, and their histories: what was seen when, and what persons decided."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Integer
from sqlmodel import Field, SQLModel

_BIG_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER


def _ms() -> Column:  # type: ignore[type-arg]
    return Column(BigInteger, nullable=False)


class Finding(SQLModel, table=True):
    """`id` is made of what the finding is about, so that the same one found again is this row. Its state, words and
    evidence are those of the newest sighting and disposition, kept here for lists; the histories are below."""

    __tablename__ = "finding"
    id: str = Field(primary_key=True)
    code: str = Field(index=True)  # vouchers.signals.Code
    severity: str  # low | medium | high
    state: str = Field(default="open", index=True)  # open | under_review | confirmed | dismissed
    programme_id: str = ""  # "": of every programme
    organisation_id: str = Field(index=True)
    provider_id: str = ""  # "" where it is about no single one
    amount_fen: int = Field(sa_column=_ms())
    text_zh: str
    text_en: str
    evidence: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    first_seen_ms: int = Field(sa_column=_ms())
    last_seen_ms: int = Field(sa_column=_ms())
    changed_ms: int = Field(sa_column=_ms())  # when the evidence was last another one than before


class FindingContract(SQLModel, table=True):
    """A contract that a finding is about: by it a claim's line knows its findings. Contracts are only ever added."""

    __tablename__ = "finding_contract"
    finding_id: str = Field(primary_key=True, foreign_key="finding.id")
    subscription_id: str = Field(primary_key=True, index=True)
    at_ms: int = Field(sa_column=_ms())  # when it was first seen to be about it


class FindingSighting(SQLModel, table=True):
    """Appended when a run finds something first, when the evidence has changed, and else once a day."""

    __tablename__ = "finding_sighting"
    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    finding_id: str = Field(foreign_key="finding.id", index=True)
    at_ms: int = Field(sa_column=_ms())
    severity: str
    amount_fen: int = Field(sa_column=_ms())
    text_zh: str
    text_en: str
    evidence: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # {}: as before


class FindingDisposition(SQLModel, table=True):
    """What a person decided, and why. Appended, never changed."""

    __tablename__ = "finding_disposition"
    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    finding_id: str = Field(foreign_key="finding.id", index=True)
    at_ms: int = Field(sa_column=_ms())
    state: str
    member_id: str
    reason: str
