"""Serving nodes elsewhere that the operator has admitted."""

from __future__ import annotations

from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class ServingNode(SQLModel, table=True):
    """A node and what its token is known by. Of an organisation: serves that one's keys only; "": everybody's."""

    __tablename__ = "serving_node"
    name: str = Field(primary_key=True)
    organisation_id: str = ""
    sha256: str = Field(index=True, unique=True)
    created_at_ms: int = Field(default_factory=now_ms)
    revoked_at_ms: int | None = None
