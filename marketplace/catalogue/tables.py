"""Tables of the catalogue: listings, versions, aliases, prices, filings. Search has an index in memory (search.py)."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class Filing(SQLModel, table=True):
    """The register of filed (备案) models. Demonstration rows read 演示-不是备案号 and are never counted."""

    __tablename__ = "filing"
    id: str = Field(primary_key=True)
    number: str = Field(unique=True)
    kind: str = "备案"  # 备案 | 登记
    model_name: str
    holder: str
    valid_from: str  # ISO day, Asia/Shanghai
    valid_until: str = ""  # "" = no end stated
    is_demo: bool = False
    created_at_ms: int = Field(default_factory=now_ms)


class Listing(SQLModel, table=True):
    __tablename__ = "listing"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    name: str = Field(unique=True)  # vendor/name
    title_zh: str = ""
    title_en: str = ""
    summary_zh: str = ""
    summary_en: str = ""
    tier: str = Field(default="small", index=True)
    task: str = Field(default="tensor", index=True)
    modality: str = Field(default="tensor", index=True)
    family: str = Field(default="", index=True)
    licence: str = ""
    chains: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    links: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    scenarios: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    keywords: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    visibility: str = Field(default="public", index=True)  # public | private
    status: str = Field(default="draft", index=True)  # draft | listed | retired | withdrawn
    is_starter: bool = False
    parent_listing_id: str | None = Field(default=None, index=True)  # the listing a private derivative is sold under
    relation: str | None = None
    root_base_listing_id: str | None = None  # over weight-reusing relations only, verified at registration
    filing_id: str | None = Field(default=None, foreign_key="filing.id")
    genai_service: str = "none"
    created_at_ms: int = Field(default_factory=now_ms)
    updated_at_ms: int = Field(default_factory=now_ms)


class ModelVersion(SQLModel, table=True):
    """One published version. `state` follows model_store.lifecycle; the row exists only once blob and registry do."""

    __tablename__ = "model_version"
    __table_args__ = (UniqueConstraint("listing_id", "number"),)
    id: str = Field(primary_key=True)
    listing_id: str = Field(foreign_key="listing.id", index=True)
    number: int
    digest: str = Field(index=True)  # bundle digest
    blob: str = ""  # SHA-256 of the packed bundle among the blobs
    state: str = Field(default="draft", index=True)  # draft|inspected|in_review|listed|retired|withdrawn
    manifest: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    inspection: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # the one report
    scorecard: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    parent_version_id: str | None = Field(default=None, index=True)
    relation: str | None = None
    size_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    published_by: str = ""  # key or member id
    created_at_ms: int = Field(default_factory=now_ms)


class Alias(SQLModel, table=True):
    __tablename__ = "alias"
    listing_id: str = Field(primary_key=True, foreign_key="listing.id")
    alias: str = Field(primary_key=True)
    number: int


class Rollout(SQLModel, table=True):
    """How calls of a listing's bare name are shared among its versions. One row a listing; gone when it has ended."""

    __tablename__ = "rollout"
    listing_id: str = Field(primary_key=True, foreign_key="listing.id")
    stable: int
    canary: int | None = None
    canary_percent: int = 0
    shadow: int | None = None
    max_failure_percent: int = 5
    # Where the canary is the shadow too: from here on its answers are another model's. None: not judged.
    max_decisions_changed_percent: int | None = None
    max_difference_percent: int | None = None
    state: str = "active"  # active | rolled_back
    started_at_ms: int = Field(default_factory=now_ms)


class PriceVersion(SQLModel, table=True):
    """A price from an instant on; never updated. `use`: for calling this listing; `derivative`: its derivatives."""

    __tablename__ = "price_version"
    id: str = Field(primary_key=True)
    listing_id: str = Field(foreign_key="listing.id", index=True)
    kind: str = "use"  # use | derivative
    unit: str = "calls"  # serving.metering.UNITS
    micro_per_unit: int = Field(sa_column=Column(BigInteger, nullable=False))  # micro-fen
    effective_from_ms: int = Field(default_factory=now_ms)
    created_by: str = ""
    created_at_ms: int = Field(default_factory=now_ms)


class Publication(SQLModel, table=True):
    """The journal of a publishing across blobs, MLflow and this database; a start settles open rows."""

    __tablename__ = "publication"
    id: str = Field(primary_key=True)
    organisation_id: str
    name: str
    digest: str
    step: str  # started | blob | registered | visible | done | failed
    registry_version: int | None = None
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    updated_at_ms: int = Field(default_factory=now_ms, index=True)
