"""The job table of adaptation."""

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class Job(SQLModel, table=True):
    __tablename__ = "job"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    created_by: str = ""
    recipe: str
    parent_version_id: str | None = None
    sample_set_id: str | None = None
    target_name: str  # vendor/name of the private derivative
    state: str = Field(default="queued", index=True)  # queued | running | registering | done | failed | cancelled
    stage: str = ""
    progress: float = 0.0
    params: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    # the loss curve and other metrics, one point each
    history: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    result: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    error: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    compute_ms: int = 0
    attempts: int = 0
    created_at_ms: int = Field(default_factory=now_ms)
    updated_at_ms: int = Field(default_factory=now_ms)
