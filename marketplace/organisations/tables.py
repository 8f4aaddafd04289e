"""Tables of organisations and the people in them."""

from typing import Any

from sqlalchemy import JSON, Column, UniqueConstraint
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class Organisation(SQLModel, table=True):
    """An enterprise (factory), a vendor or the operator. Enterprises carry their 统一社会信用代码 (`uscc`)."""

    __tablename__ = "organisation"
    id: str = Field(primary_key=True)
    kind: str = Field(index=True)  # enterprise | vendor | operator
    name_zh: str
    name_en: str = ""
    slug: str | None = Field(default=None, unique=True)  # the vendor part of model names; enterprises have one too
    uscc: str | None = Field(default=None, unique=True)
    status: str = Field(default="pending", index=True)  # pending | approved | suspended | rejected
    legal_person: str = ""
    controllers: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))  # USCCs or person ids
    # [{name, code, share_bp}]: code is a USCC or a person's id, "" where only the name is known
    shareholders: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    address: str = ""
    phone: str = ""
    town: str = ""
    run_weight: int = Field(default=1, sa_column_kwargs={"server_default": "1"})  # of run time, where calls wait
    is_demo: bool = False
    created_at_ms: int = Field(default_factory=now_ms)


class Member(SQLModel, table=True):
    __tablename__ = "member"
    __table_args__ = (UniqueConstraint("email"),)
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    email: str
    name: str
    role: str = "member"  # owner | member
    password_hash: str = ""  # argon2id; "" until the invitation is accepted
    status: str = "active"  # invited | active | disabled
    created_at_ms: int = Field(default_factory=now_ms)


class OneTimeToken(SQLModel, table=True):
    """An invitation or a password reset: only the SHA-256 of the token is kept."""

    __tablename__ = "one_time_token"
    id: str = Field(primary_key=True)
    kind: str  # invitation | reset
    member_id: str = Field(foreign_key="member.id", index=True)
    sha256: str = Field(unique=True)
    expires_at_ms: int
    used_at_ms: int | None = None


class WebSession(SQLModel, table=True):
    __tablename__ = "web_session"
    sha256: str = Field(primary_key=True)
    member_id: str = Field(foreign_key="member.id", index=True)
    created_at_ms: int = Field(default_factory=now_ms)
    expires_at_ms: int


class Notice(SQLModel, table=True):
    """An in-app notice to one organisation."""

    __tablename__ = "notice"
    id: str = Field(primary_key=True)
    organisation_id: str = Field(foreign_key="organisation.id", index=True)
    code: str  # stable, e.g. VOUCHER_80
    text_zh: str
    text_en: str
    link: str = ""
    created_at_ms: int = Field(default_factory=now_ms)
    read_at_ms: int | None = None


class AuditEvent(SQLModel, table=True):
    """Who did what to what, appended in the transaction that did it; never updated."""

    __tablename__ = "audit_event"
    id: str = Field(primary_key=True)
    at_ms: int = Field(default_factory=now_ms, index=True)
    actor: str  # member id, key id or "system"
    organisation_id: str = Field(default="", index=True)
    action: str = Field(index=True)  # voucher.issue, version.list, key.revoke …
    subject: str = Field(default="", index=True)
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
