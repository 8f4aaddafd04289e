"""Sample sets and choices."""

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class SampleSet(SQLModel, table=True):
    """A factory's own rows or images, kept until `expires_at_ms`; bytes lie under $ALGOMART_HOME/samples/<id>/."""

    __tablename__ = "sample_set"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    kind: str  # table | images
    filename: str
    rows: int
    columns: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    label_column: str | None = None
    sha256: str
    created_at_ms: int = Field(default_factory=now_ms)
    expires_at_ms: int
    deleted_at_ms: int | None = None
    receipt: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class Choice(SQLModel, table=True):
    __tablename__ = "choice"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    sample_set_id: str = Field(foreign_key="sample_set.id")
    state: str = "queued"  # queued | running | done | failed
    progress: float = 0.0
    request: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    result: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    created_at_ms: int = Field(default_factory=now_ms)
