"""The table of API keys: a 256-bit secret of which only the SHA-256 is kept."""

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class ApiKey(SQLModel, table=True):
    __tablename__ = "api_key"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    member_id: str = Field(default="", index=True)
    name: str
    prefix: str  # first characters, for recognition: am_Ab3d…
    sha256: str = Field(unique=True)
    scopes: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    created_at_ms: int = Field(default_factory=now_ms)
    expires_at_ms: int | None = None  # set to the end of the overlap when rotated
    revoked_at_ms: int | None = None
    replaced_by: str | None = None
    # Limits of the key's own, beside the node's; 0: none. `burst` 0: what a second allows.
    rate_per_s: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    burst: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    concurrency: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
