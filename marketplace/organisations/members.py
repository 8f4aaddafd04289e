"""The people of an organisation: invitation, login, password reset.

The market sends no mail (it may stand on an intranet without any): whoever invites gets the one-time link and passes it
on; a forgotten password is reported to the organisation's owners, one of whom, or the operator, issues the reset link.
The operator's own people are invited and reset on the machine only (marketplace/operators.py).
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from marketplace.ids import new_id
from marketplace.keys.tokens import fingerprint, new_token
from marketplace.organisations import audit, notices
from marketplace.organisations.passwords import LoginThrottle, check_password, hash_password, password_fits
from marketplace.organisations.registration import add_member, check_email, check_free, get_organisation
from marketplace.organisations.tables import Member, OneTimeToken, WebSession
from model_store.errors import BadInput, Conflict, NotFound, Unauthenticated

INVITATION_LIFE_MS = 7 * 86_400_000
RESET_LIFE_MS = 3_600_000
SESSION_LIFE_MS = 12 * 3_600_000
_throttle = LoginThrottle()


def invite_member(
    session: Session, *, organisation_id: str, email: str, name: str, role: str, actor: str, at_ms: int
) -> tuple[Member, str]:
    """An invited member and the one-time token that lets them set a password within seven days."""
    if role not in ("owner", "member"):
        raise BadInput(
            "ROLE_INVALID",
            zh="成员角色只能是 owner 或 member",
            en="a member's role is owner or member",
            remedy_zh="请选择其一",
            remedy_en="choose one of them",
            field="role",
        )
    check_free(session, slug=None, uscc=None, email=check_email(email))
    organisation = get_organisation(session, organisation_id)
    member = add_member(session, organisation, email=email, name=name, role=role)
    token = issue_token(session, member, "invitation", at_ms)
    audit.record(
        session, actor=actor, organisation_id=organisation_id, action="member.invite", subject=member.id, role=role
    )
    return member, token


def issue_token(session: Session, member: Member, kind: str, at_ms: int) -> str:
    """A fresh one-time token (invitation | reset); earlier unused ones of the kind lapse."""
    earlier = select(OneTimeToken).where(
        OneTimeToken.member_id == member.id, OneTimeToken.kind == kind, col(OneTimeToken.used_at_ms).is_(None)
    )
    for row in session.exec(earlier):
        row.expires_at_ms = min(row.expires_at_ms, at_ms)
        session.add(row)
    token = new_token()
    life_ms = INVITATION_LIFE_MS if kind == "invitation" else RESET_LIFE_MS
    session.add(
        OneTimeToken(
            id=new_id("inv"), kind=kind, member_id=member.id, sha256=fingerprint(token), expires_at_ms=at_ms + life_ms
        )
    )
    return token


def password_path(kind: str, token: str) -> str:
    """The page where an invitation or a reset is redeemed."""
    return f"/password?kind={kind}&token={token}"


def redeem_token(session: Session, token: str, kind: str, password: str, at_ms: int) -> Member:
    """Set the password that an invitation or reset token allows, once; every session of the member ends."""
    row = session.exec(
        select(OneTimeToken).where(OneTimeToken.sha256 == fingerprint(token), OneTimeToken.kind == kind)
    ).first()
    if row is None or row.used_at_ms is not None or row.expires_at_ms <= at_ms:
        raise BadInput(
            "TOKEN_INVALID",
            zh="该链接无效、已使用或已过期",
            en="this link is unknown, used or expired",
            remedy_zh="请向本单位管理员索取新链接",
            remedy_en="ask your organisation's owner for a new one",
            field="token",
        )
    check_password(password)
    member = session.get_one(Member, row.member_id)
    if member.status == "disabled":
        raise login_refused()
    member.password_hash = hash_password(password)
    member.status = "active"
    row.used_at_ms = at_ms
    session.add_all([member, row])
    end_sessions(session, member.id)
    action = "member.accept" if kind == "invitation" else "member.password_reset"
    audit.record(session, actor=member.id, organisation_id=member.organisation_id, action=action, subject=member.id)
    return member


def forgot_password(session: Session, email: str, at_ms: int) -> None:
    """Tell the owners of the member's organisation. Answers nothing: who has an account is not the caller's to know."""
    member = session.exec(select(Member).where(Member.email == email.strip().lower())).first()
    if member is None or member.status != "active":
        return
    notices.notify(
        session,
        member.organisation_id,
        "PASSWORD_RESET_ASKED",
        zh=f"{member.name}({member.email})申请重置密码, 请管理员在“成员”页生成重置链接",
        en=f"{member.name} ({member.email}) asks for a password reset: an owner can make the link on the Members page",
        link="/console/members",
    )


def login(session: Session, email: str, password: str, at_ms: int) -> tuple[Member, str]:
    """The member and a session token good for twelve hours; `Unauthenticated` LOGIN_REFUSED, `TooMany`."""
    member = check_login(session, email, password, at_ms)
    return member, open_session(session, member, at_ms)


def check_login(session: Session, email: str, password: str, at_ms: int) -> Member:
    """Who this is; raises as `login`. Writes nothing, and takes tens of milliseconds: not for a writing transaction,
    which would let anybody without an account hold up every other writer.
    """
    account = email.strip().lower()
    _throttle.check(account, at_ms)
    member = session.exec(select(Member).where(Member.email == account)).first()
    usable = member if member is not None and member.status == "active" else None
    if not password_fits(usable.password_hash if usable else "", password) or usable is None:
        _throttle.failed(account, at_ms)
        raise login_refused()
    _throttle.succeeded(account)
    return usable


def open_session(session: Session, member: Member, at_ms: int) -> str:
    """A new session token for the member; sessions that are over are removed on the way."""
    for row in session.exec(
        select(WebSession).where(WebSession.member_id == member.id, col(WebSession.expires_at_ms) <= at_ms)
    ):
        session.delete(row)
    token = new_token()
    session.add(WebSession(sha256=fingerprint(token), member_id=member.id, expires_at_ms=at_ms + SESSION_LIFE_MS))
    return token


def logout(session: Session, token: str) -> None:
    """End the session of this cookie, if there is one."""
    row = session.get(WebSession, fingerprint(token))
    if row is not None:
        session.delete(row)


def end_sessions(session: Session, member_id: str) -> None:
    """Log the member out everywhere."""
    for row in session.exec(select(WebSession).where(WebSession.member_id == member_id)):
        session.delete(row)
    session.flush()


def disable_member(session: Session, member: Member, *, actor: str) -> Member:
    """Shut a member out: sessions end, keys stop. The last active owner cannot be disabled."""
    owners = session.exec(
        select(Member).where(
            Member.organisation_id == member.organisation_id, Member.role == "owner", Member.status == "active"
        )
    ).all()
    if member.role == "owner" and [owner.id for owner in owners] == [member.id]:
        raise Conflict(
            "LAST_OWNER",
            zh="不能停用单位的最后一位管理员",
            en="the organisation's last owner cannot be disabled",
            remedy_zh="请先增加另一位管理员",
            remedy_en="add another owner first",
        )
    member.status = "disabled"
    session.add(member)
    end_sessions(session, member.id)
    audit.record(
        session, actor=actor, organisation_id=member.organisation_id, action="member.disable", subject=member.id
    )
    return member


def get_member(session: Session, member_id: str, organisation_id: str | None) -> Member:
    """A member of the organisation (of any, if None); `NotFound` MEMBER_NOT_FOUND."""
    member = session.get(Member, member_id)
    if member is None or organisation_id not in (None, member.organisation_id):
        raise NotFound(
            "MEMBER_NOT_FOUND",
            zh=f"本单位没有编号为 {member_id[:60]} 的成员",
            en=f"your organisation has no member {member_id[:60]}",
            remedy_zh="请在“成员”页核对",
            remedy_en="look at the Members page",
        )
    return member


def login_refused() -> Unauthenticated:
    return Unauthenticated(
        "LOGIN_REFUSED",
        zh="邮箱或密码不正确, 或账号不可用",
        en="the address or password is wrong, or the account is not usable",
        remedy_zh="请核对后重试, 或使用“忘记密码”",
        remedy_en="check both and try again, or use the forgotten-password link",
    )


def list_members(session: Session, organisation_id: str) -> list[Member]:
    """Owners first, then by name."""
    query = select(Member).where(Member.organisation_id == organisation_id)
    return list(session.exec(query.order_by(col(Member.role).desc(), Member.name)))
