"""API keys: created, rotated with an overlap, revoked. Only the SHA-256 of a key is kept; its text is shown once."""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from marketplace.ids import new_id
from marketplace.keys.authentication import SCOPES, decide_key_state, scopes_of_kind
from marketplace.keys.tables import ApiKey
from marketplace.keys.tokens import SHOWN_CHARACTERS, fingerprint, new_key_secret
from marketplace.organisations import audit
from marketplace.organisations.registration import check_text
from marketplace.organisations.tables import Organisation
from model_store.errors import BadInput, Conflict, Forbidden, NotFound
from serving.ports import NO_LIMITS, KeyLimits

MAX_KEYS = 200
MAX_OVERLAP_MS = 30 * 86_400_000
MAX_LIMIT = 1_000_000


def create_key(
    session: Session,
    organisation: Organisation,
    *,
    name: str,
    scopes: Iterable[str],
    actor: str,
    member_id: str = "",
    expires_at_ms: int | None = None,
    at_ms: int = 0,
    within: frozenset[str] | None = None,
    limits: KeyLimits = NO_LIMITS,
) -> tuple[ApiKey, str]:
    """A key and its text, which is nowhere kept. `within`: the creator's own scopes; nobody hands out more."""
    wanted = check_scopes(scopes, organisation.kind, within)
    check_limits(limits)
    if expires_at_ms is not None and expires_at_ms <= at_ms:
        raise BadInput(
            "EXPIRY_PAST",
            zh="密钥的到期时间必须在将来",
            en="a key's expiry lies in the future",
            remedy_zh="请填写以后的时间, 或留空表示不过期",
            remedy_en="give a later instant, or none for no expiry",
            field="expires_at_ms",
        )
    live = [key for key in list_keys(session, organisation.id) if decide_key_state(key, at_ms) == "active"]
    if len(live) >= MAX_KEYS:
        raise Conflict(
            "KEYS_TOO_MANY",
            zh=f"每个单位最多 {MAX_KEYS} 个有效密钥",
            en=f"an organisation has at most {MAX_KEYS} keys",
            remedy_zh="请先吊销不再使用的密钥",
            remedy_en="revoke keys that are no longer used",
        )
    key, secret = _new_key(organisation.id, member_id, check_text(name, field="name"), wanted, expires_at_ms)
    _limit(key, limits)
    session.add(key)
    audit.record(
        session, actor=actor, organisation_id=organisation.id, action="key.create", subject=key.id, scopes=wanted
    )
    return key, secret


def rotate_key(
    session: Session, key: ApiKey, *, overlap_ms: int, actor: str, at_ms: int, within: frozenset[str] | None = None
) -> tuple[ApiKey, str]:
    """A successor with the same name, scopes and limits; the old key keeps working for `overlap_ms` (0 to 30 days).

    `within`: the caller's own scopes; who holds a narrow key cannot rotate their way into a wide one.
    """
    if within is not None and not set(key.scopes) <= within:
        raise scopes_beyond()
    if decide_key_state(key, at_ms) != "active":
        raise Conflict(
            "KEY_NOT_ACTIVE",
            zh="只有有效的密钥可以轮换",
            en="only an active key can be rotated",
            remedy_zh="请新建密钥",
            remedy_en="create a new key",
        )
    if not 0 <= overlap_ms <= MAX_OVERLAP_MS:
        raise BadInput(
            "OVERLAP_INVALID",
            zh="重叠期须在 0 至 30 天之间",
            en="the overlap is 0 to 30 days",
            remedy_zh="请填写毫秒数, 例如 86400000 (一天)",
            remedy_en="give milliseconds, for example 86400000 (one day)",
            field="overlap_ms",
        )
    successor, secret = _new_key(key.organisation_id, key.member_id, key.name, list(key.scopes), key.expires_at_ms)
    _limit(successor, limits_of(key))
    end_ms = at_ms + overlap_ms
    key.expires_at_ms = min(end_ms, key.expires_at_ms) if key.expires_at_ms else end_ms
    key.replaced_by = successor.id
    session.add_all([key, successor])
    audit.record(
        session,
        actor=actor,
        organisation_id=key.organisation_id,
        action="key.rotate",
        subject=key.id,
        successor=successor.id,
        overlap_ms=overlap_ms,
    )
    return successor, secret


def limit_key(session: Session, key: ApiKey, limits: KeyLimits, *, actor: str) -> ApiKey:
    """Set what a key may call. After the commit the caller tells the nodes (`Market.keys_changed`)."""
    check_limits(limits)
    _limit(key, limits)
    session.add(key)
    audit.record(
        session,
        actor=actor,
        organisation_id=key.organisation_id,
        action="key.limit",
        subject=key.id,
        rate_per_s=limits.rate_per_s,
        burst=limits.burst,
        concurrency=limits.concurrency,
    )
    return key


def limits_of(key: ApiKey) -> KeyLimits:
    return KeyLimits(key.rate_per_s, key.burst, key.concurrency)


def revoke_key(session: Session, key: ApiKey, *, actor: str, at_ms: int) -> ApiKey:
    """Stop a key for good. After the commit the caller tells the nodes (`Market.keys_changed`)."""
    if key.revoked_at_ms is None:
        key.revoked_at_ms = at_ms
        session.add(key)
        audit.record(session, actor=actor, organisation_id=key.organisation_id, action="key.revoke", subject=key.id)
    return key


def list_keys(session: Session, organisation_id: str, *, member_id: str | None = None) -> list[ApiKey]:
    """Newest first; of one member only, if named."""
    query = select(ApiKey).where(ApiKey.organisation_id == organisation_id)
    if member_id is not None:
        query = query.where(ApiKey.member_id == member_id)
    return list(session.exec(query.order_by(col(ApiKey.created_at_ms).desc(), col(ApiKey.id).desc())))


def get_key(session: Session, key_id: str, organisation_id: str) -> ApiKey:
    """A key of the organisation; `NotFound` KEY_NOT_FOUND."""
    key = session.get(ApiKey, key_id)
    if key is None or key.organisation_id != organisation_id:
        raise NotFound(
            "KEY_NOT_FOUND",
            zh=f"本单位没有编号为 {key_id[:60]} 的密钥",
            en=f"your organisation has no key {key_id[:60]}",
            remedy_zh="请在“密钥”页核对",
            remedy_en="look at the Keys page",
        )
    return key


def check_scopes(scopes: Iterable[str], kind: str, within: frozenset[str] | None = None) -> list[str]:
    """The scopes in their usual order; `BadInput` SCOPE_INVALID, `Forbidden` SCOPE_MISSING beyond one's own."""
    wanted = set(scopes)
    unknown = wanted - scopes_of_kind(kind)
    if unknown or not wanted:
        lawful = ", ".join(scope for scope in SCOPES if scope in scopes_of_kind(kind))
        raise BadInput(
            "SCOPE_INVALID",
            zh=f"密钥权限无效: {', '.join(sorted(unknown)) or '(空)'}",
            en=f"these are no scopes for a key of yours: {', '.join(sorted(unknown)) or '(none given)'}",
            remedy_zh=f"可选: {lawful}",
            remedy_en=f"choose from: {lawful}",
            field="scopes",
        )
    if within is not None and not wanted <= within:
        raise scopes_beyond()
    return [scope for scope in SCOPES if scope in wanted]


def check_limits(limits: KeyLimits) -> None:
    """`BadInput` LIMIT_INVALID."""
    for field, value in (
        ("rate_per_s", limits.rate_per_s),
        ("burst", limits.burst),
        ("concurrency", limits.concurrency),
    ):
        if not 0 <= value <= MAX_LIMIT:
            raise BadInput(
                "LIMIT_INVALID",
                zh=f"限额须在 0 至 {MAX_LIMIT} 之间",
                en=f"a limit is 0 to {MAX_LIMIT}",
                remedy_zh="请填写整数; 0 表示不另设限额",
                remedy_en="give a whole number; 0 sets none",
                field=field,
            )


def scopes_beyond() -> Forbidden:
    return Forbidden(
        "SCOPE_MISSING",
        zh="不能授予自己没有的权限",
        en="one cannot hand out scopes that one does not have",
        remedy_zh="请登录控制台操作",
        remedy_en="log in at the console and do it there",
        field="scopes",
    )


def _limit(key: ApiKey, limits: KeyLimits) -> None:
    key.rate_per_s, key.burst, key.concurrency = limits.rate_per_s, limits.burst, limits.concurrency


def _new_key(
    organisation_id: str, member_id: str, name: str, scopes: list[str], expires_at_ms: int | None
) -> tuple[ApiKey, str]:
    secret = new_key_secret()
    key = ApiKey(
        id=new_id("key"),
        organisation_id=organisation_id,
        member_id=member_id,
        name=name,
        prefix=secret[:SHOWN_CHARACTERS],
        sha256=fingerprint(secret),
        scopes=scopes,
        expires_at_ms=expires_at_ms,
    )
    return key, secret
