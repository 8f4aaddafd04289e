"""Organisations: self-registration, and the operator's approval, rejection and suspension."""

from __future__ import annotations

import re
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.ids import new_id
from marketplace.organisations import audit, declaring, notices
from marketplace.organisations.passwords import check_password, hash_password
from marketplace.organisations.tables import Member, Organisation
from marketplace.organisations.uscc import check_uscc, is_demo
from model_store.errors import BadInput, Conflict, NotFound
from model_store.names import check_vendor

MAX_NAME_CHARACTERS = 120
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")
# What may become of an organisation, and by which decision.
_TRANSITIONS = {
    ("pending", "approve"): "approved",
    ("pending", "reject"): "rejected",
    ("rejected", "approve"): "approved",
    ("approved", "suspend"): "suspended",
    ("suspended", "approve"): "approved",
}


def decide_standing(status: str, decision: str) -> str:
    """The standing after `decision` approve | reject | suspend; `Conflict` ORGANISATION_STATE if it does not apply."""
    after = _TRANSITIONS.get((status, decision))
    if after is None:
        raise Conflict(
            "ORGANISATION_STATE",
            zh=f"状态为“{status}”的单位不能执行“{decision}”",
            en=f"an organisation that is {status} cannot be subject to {decision}",
            remedy_zh="请刷新后查看当前状态",
            remedy_en="look at its present state and decide again",
            details={"status": status},
        )
    return after


def register_organisation(
    session: Session,
    *,
    kind: str,
    name_zh: str,
    slug: str,
    email: str,
    member_name: str,
    password: str,
    name_en: str = "",
    uscc: str | None = None,
    legal_person: str = "",
    controllers: list[str] | None = None,
    shareholders: list[dict[str, Any]] | None = None,
    address: str = "",
    phone: str = "",
    town: str = "",
    hashed: str = "",
) -> tuple[Organisation, Member]:
    """A pending organisation and its first member, its owner. `BadInput` by field, `Conflict` for what is taken.

    `hashed`: the password's hash where the caller has made it already.
    """
    check_kind(kind)
    name_zh = check_text(name_zh, field="name_zh")
    slug = check_vendor(slug, field="slug")
    code = _code_of(kind, uscc)
    check_free(session, slug=slug, uscc=code, email=check_email(email))
    hashed = hashed or hashed_password(password)
    organisation = Organisation(
        id=new_id("org"),
        kind=kind,
        name_zh=name_zh,
        name_en=name_en.strip()[:MAX_NAME_CHARACTERS],
        slug=slug,
        uscc=code,
        town=town.strip()[:MAX_NAME_CHARACTERS],
        is_demo=bool(code and is_demo(code)),
    )
    declaring.fill(
        organisation,
        {
            "legal_person": legal_person,
            "controllers": controllers,
            "shareholders": shareholders,
            "address": address,
            "phone": phone,
        },
    )
    member = add_member(session, organisation, email=email, name=member_name, role="owner", hashed=hashed)
    _announce(session, organisation, member)
    return organisation, member


def check_kind(kind: str) -> None:
    """`BadInput` KIND_INVALID for what does not register by itself."""
    if kind not in ("enterprise", "vendor"):
        raise BadInput(
            "KIND_INVALID",
            zh="单位类型只能是 enterprise(企业)或 vendor(供应商)",
            en="an organisation registers as enterprise or vendor",
            remedy_zh="运营方账号由平台部署者创建",
            remedy_en="operator accounts are created by whoever runs the market",
            field="kind",
        )


def _code_of(kind: str, uscc: str | None) -> str | None:
    code = check_uscc(uscc) if uscc else None
    if code is None and kind == "enterprise":
        raise BadInput(
            "USCC_REQUIRED",
            zh="企业须填写统一社会信用代码",
            en="an enterprise registers with its unified social credit code",
            remedy_zh="请填写营业执照上的18位代码",
            remedy_en="give the 18 characters on the business licence",
            field="uscc",
        )
    return code


def _announce(session: Session, organisation: Organisation, member: Member) -> None:
    audit.record(
        session,
        actor=member.id,
        organisation_id=organisation.id,
        action="organisation.register",
        subject=organisation.id,
    )
    notices.notify_operators(
        session,
        "ORGANISATION_PENDING",
        zh=f"{organisation.name_zh} 申请入驻, 等待审核",
        en=f"{organisation.name_en or organisation.name_zh} has registered and waits for approval",
        link="/city/organisations",
    )


def hashed_password(password: str) -> str:
    """The hash of a lawful password; `BadInput` PASSWORD_WEAK."""
    check_password(password)
    return hash_password(password)


def add_member(
    session: Session,
    organisation: Organisation,
    *,
    email: str,
    name: str,
    role: str,
    password: str = "",
    hashed: str = "",
) -> Member:
    """A member with a password or its hash (active) or without one (invited), added together with the organisation."""
    session.add(organisation)
    session.flush()
    member = Member(
        id=new_id("mem"),
        organisation_id=organisation.id,
        email=check_email(email),
        name=check_text(name, field="member_name"),
        role=role,
        password_hash=hash_password(password) if password else hashed,
        status="active" if password or hashed else "invited",
    )
    session.add(member)
    session.flush()
    return member


def decide_organisation(
    session: Session, organisation_id: str, decision: str, *, actor: str, reason: str = ""
) -> Organisation:
    """Approve (also: reinstate), reject or suspend; tells the organisation and the audit log."""
    organisation = get_organisation(session, organisation_id)
    organisation.status = decide_standing(organisation.status, decision)
    session.add(organisation)
    audit.record(
        session,
        actor=actor,
        organisation_id=organisation.id,
        action=f"organisation.{decision}",
        subject=organisation.id,
        reason=reason,
    )
    done_zh, done_en = {
        "approve": ("已通过审核", "approved"),
        "reject": ("未通过审核", "rejected"),
        "suspend": ("已被暂停", "suspended"),
    }[decision]
    notices.notify(
        session,
        organisation.id,
        f"ORGANISATION_{organisation.status.upper()}",
        zh=f"贵单位{done_zh}" + (f": {reason}" if reason else ""),
        en=f"Your organisation has been {done_en}" + (f": {reason}" if reason else ""),
        link="/console",
    )
    return organisation


def weigh_organisation(session: Session, organisation_id: str, weight: int, *, actor: str) -> Organisation:
    """Set its weight where calls wait. After the commit the caller tells the nodes (`Market.keys_changed`)."""
    organisation = get_organisation(session, organisation_id)
    before, organisation.run_weight = organisation.run_weight, weight
    session.add(organisation)
    audit.record(
        session,
        actor=actor,
        organisation_id=organisation.id,
        action="organisation.weigh",
        subject=organisation.id,
        before=before,
        weight=weight,
    )
    return organisation


def get_organisation(session: Session, organisation_id: str) -> Organisation:
    organisation = session.get(Organisation, organisation_id)
    if organisation is None:
        raise organisation_not_found(organisation_id)
    return organisation


def organisation_not_found(organisation_id: str) -> NotFound:
    return NotFound(
        "ORGANISATION_NOT_FOUND",
        zh=f"没有编号为 {organisation_id[:60]} 的单位",
        en=f"there is no organisation {organisation_id[:60]}",
        remedy_zh="请在单位列表中核对编号",
        remedy_en="look its id up in the list of organisations",
    )


def list_organisations(
    session: Session, *, kind: str = "", status: str = "", limit: int = 200, offset: int = 0
) -> tuple[list[Organisation], int]:
    """Newest first, by kind and standing."""
    query = select(Organisation)
    if kind:
        query = query.where(Organisation.kind == kind)
    if status:
        query = query.where(Organisation.status == status)
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    rows = session.exec(query.order_by(col(Organisation.created_at_ms).desc()).limit(limit).offset(offset))
    return list(rows), total


def check_text(text: str, *, field: str) -> str:
    """A name of 1 to 120 printable characters."""
    cleaned = " ".join(text.split())
    if 0 < len(cleaned) <= MAX_NAME_CHARACTERS and cleaned.isprintable():
        return cleaned
    raise BadInput(
        "TEXT_INVALID",
        zh=f"“{field}”须为 1 至 {MAX_NAME_CHARACTERS} 个可见字符",
        en=f"{field} takes 1 to {MAX_NAME_CHARACTERS} printable characters",
        remedy_zh="请填写名称",
        remedy_en="give a name",
        field=field,
    )


def check_email(email: str) -> str:
    """The address in lower case; `BadInput` EMAIL_INVALID."""
    cleaned = email.strip().lower()
    if _EMAIL.fullmatch(cleaned):
        return cleaned
    raise BadInput(
        "EMAIL_INVALID",
        zh=f"“{email[:80]}”不是有效的邮箱地址",
        en=f"{email[:80]!r} is not an e-mail address",
        remedy_zh="请填写形如 name@example.com 的地址",
        remedy_en="give an address such as name@example.com",
        field="email",
    )


def check_free(session: Session, *, slug: str | None, uscc: str | None, email: str) -> None:
    """`Conflict` SLUG_TAKEN, USCC_TAKEN or EMAIL_TAKEN."""
    taken: tuple[tuple[bool, str, str, str], ...] = (
        (bool(slug) and _exists(session, Organisation.slug, slug), "slug", f"名称“{slug}”", f"the slug {slug!r}"),
        (bool(uscc) and _exists(session, Organisation.uscc, uscc), "uscc", f"代码 {uscc}", f"the code {uscc}"),
        (_exists(session, Member.email, email), "email", f"邮箱 {email}", f"the address {email}"),
    )
    for is_taken, field, zh, en in taken:
        if is_taken:
            raise Conflict(
                f"{field.upper()}_TAKEN",
                zh=f"{zh} 已被注册",
                en=f"{en} is already registered",
                remedy_zh="请换一个, 或联系平台运营方",
                remedy_en="use another one, or ask the market's operator",
                field=field,
            )


def _exists(session: Session, column: object, value: object) -> bool:
    return session.exec(select(func.count()).where(column == value)).one() > 0
