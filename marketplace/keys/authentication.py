"""From a key or a session cookie to who is behind it. One rule for the market's own pages and for the data plane."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, select

from marketplace.keys.tables import ApiKey
from marketplace.keys.tokens import KEY_PREFIX, fingerprint
from marketplace.organisations.tables import Member, Organisation, WebSession
from model_store.errors import Forbidden, Unauthenticated

SCOPES = ("use", "choose", "adapt", "publish", "manage", "admin")
MAX_TOKEN_CHARACTERS = 256
_SCOPES_OF_KIND = {
    "enterprise": frozenset({"use", "choose", "adapt", "publish", "manage"}),
    "vendor": frozenset({"use", "choose", "adapt", "publish", "manage"}),
    "operator": frozenset(SCOPES),
}


def scopes_of_kind(kind: str) -> frozenset[str]:
    """The most that a key or session of an organisation of this kind may do."""
    return _SCOPES_OF_KIND.get(kind, frozenset())


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or session that holds at this instant."""

    organisation: Organisation
    member: Member | None
    key: ApiKey | None
    scopes: frozenset[str]


def decide_key_state(key: ApiKey, at_ms: int) -> str:
    """`active`, `rotating` (still good until `expires_at_ms`), `expired` or `revoked`."""
    if key.revoked_at_ms is not None:
        return "revoked"
    if key.expires_at_ms is not None and key.expires_at_ms <= at_ms:
        return "expired"
    return "rotating" if key.replaced_by else "active"


def find_key(session: Session, token: str, at_ms: int) -> Credential:
    """The credential behind an API key; `Unauthenticated` KEY_INVALID, KEY_REVOKED or KEY_EXPIRED, or `Forbidden`."""
    key = None
    if token.startswith(KEY_PREFIX) and len(token) <= MAX_TOKEN_CHARACTERS:
        key = session.exec(select(ApiKey).where(ApiKey.sha256 == fingerprint(token))).first()
    if key is None:
        raise key_refused("KEY_INVALID")
    state = decide_key_state(key, at_ms)
    if state in ("revoked", "expired"):
        raise key_refused(f"KEY_{state.upper()}")
    organisation = session.get_one(Organisation, key.organisation_id)
    member = session.get(Member, key.member_id) if key.member_id else None
    if member is not None and member.status == "disabled":
        raise key_refused("KEY_REVOKED")
    return Credential(organisation, member, key, frozenset(key.scopes) & scopes_of_kind(organisation.kind))


def find_session(session: Session, token: str, at_ms: int) -> Credential | None:
    """The credential behind a session cookie; None where it is unknown, over, or its member is disabled."""
    row = session.get(WebSession, fingerprint(token[:MAX_TOKEN_CHARACTERS]))
    if row is None or row.expires_at_ms <= at_ms:
        return None
    member = session.get_one(Member, row.member_id)
    if member.status != "active":
        return None
    organisation = session.get_one(Organisation, member.organisation_id)
    return Credential(organisation, member, None, scopes_of_kind(organisation.kind))


def check_standing(organisation: Organisation) -> None:
    """`Forbidden` unless the operator has approved the organisation and not suspended it."""
    if organisation.status != "approved":
        raise standing_refused(organisation.status)


def standing_refused(status: str) -> Forbidden:
    """The refusal for an organisation that is pending, rejected or suspended."""
    word_zh = {"pending": "尚待审核", "rejected": "未通过审核", "suspended": "已被暂停"}.get(status, status)
    return Forbidden(
        "ORGANISATION_NOT_APPROVED",
        zh=f"贵单位{word_zh}, 暂不能进行此操作",
        en=f"your organisation is {status}; it may not do this",
        remedy_zh="请联系平台运营方",
        remedy_en="ask the market's operator",
        details={"status": status},
    )


def key_refused(code: str) -> Unauthenticated:
    """The refusal for a missing, unknown, expired or revoked key."""
    zh, en = {
        "KEY_MISSING": ("请求没有携带密钥", "the request carries no key"),
        "KEY_INVALID": ("密钥无效", "the key is not valid"),
        "KEY_REVOKED": ("密钥已被吊销", "the key has been revoked"),
        "KEY_EXPIRED": ("密钥已过期", "the key has expired"),
    }[code]
    return Unauthenticated(
        code,
        zh=zh,
        en=en,
        remedy_zh="请在控制台“密钥”页创建密钥, 并放入请求头 Authorization: Bearer am_…",
        remedy_en="create a key on the console's Keys page and send it as the header Authorization: Bearer am_…",
    )
