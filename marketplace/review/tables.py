"""The review queue."""

from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class Review(SQLModel, table=True):
    __tablename__ = "review"
    id: str = Field(primary_key=True)
    version_id: str = Field(foreign_key="model_version.id", index=True)
    state: str = Field(default="open", index=True)  # open | approved | returned
    submitted_by: str = ""
    decided_by: str = ""
    note: str = ""
    created_at_ms: int = Field(default_factory=now_ms)
    decided_at_ms: int | None = None
