"""The operator's own people: made by whoever runs the machine, never by another operator.

Public money is issued by two persons. Were an operator able to invite a colleague, or to reset one's password, a single
person could hold both accounts; so these two lie with whoever runs the machine (`algomart operator …`), as
docs/decisions/0015 explains. The first start leaves an invitation in `$ALGOMART_HOME/operator-invitation.json` (0600).
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session, select

from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.demo import write_secret
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.organisations.members import disable_member, invite_member, issue_token, password_path
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import Member, Organisation
from model_store.errors import Conflict, NotFound

INVITATION_FILE = "operator-invitation.json"
FIRST_EMAIL = "operator@localhost"
HOST = "host"  # what audit rows name: whoever runs the machine


def invite_first_operator(engine: Engine, home: Path) -> bool:
    """Make the operator organisation if there is none, and an invitation as long as nobody has accepted one.

    Answers whether an invitation stands; the file is removed once an operator can log in.
    """
    path = home / INVITATION_FILE
    with transaction(engine) as session:
        operator = _operator(session)
        members = _people(session, operator) if operator else []
        if any(member.status == "active" for member in members):
            path.unlink(missing_ok=True)
            return False
        if operator is None:
            members = [_create_operator(session)]
        token = issue_token(session, members[0], "invitation", now_ms())
        email = members[0].email
    write_secret(path, {"email": email, "token": token, "accept_path": password_path("invitation", token)})
    return True


def list_operators(engine: Engine) -> list[Member]:
    """Everybody in the operator's organisation, disabled ones too."""
    with reading(engine) as session:
        operator = _operator(session)
        return _people(session, operator) if operator else []


def invite_operator(engine: Engine, email: str, name: str) -> dict[str, str]:
    """{email, path, token} of a new operator's invitation, good for seven days; `Conflict` NO_OPERATOR."""
    with transaction(engine) as session:
        operator = _operator(session)
        if operator is None:
            raise Conflict(
                "NO_OPERATOR",
                zh="这个市场还没有启动过",
                en="this market has never been started",
                remedy_zh="先运行 algomart up --no-demo, 首位运营人员的邀请会写入 operator-invitation.json",
                remedy_en="run algomart up --no-demo first; it leaves the first operator's invitation",
            )
        member, token = invite_member(
            session, organisation_id=operator.id, email=email, name=name, role="owner", actor=HOST, at_ms=now_ms()
        )
        return {"email": member.email, "path": password_path("invitation", token), "token": token}


def reset_operator(engine: Engine, email: str) -> dict[str, str]:
    """{email, path, token} of an operator's password reset, good for an hour; `NotFound` OPERATOR_NOT_FOUND."""
    with transaction(engine) as session:
        member = _operator_named(session, email)
        kind = "invitation" if member.status == "invited" else "reset"
        token = issue_token(session, member, kind, now_ms())
        audit.record(
            session,
            actor=HOST,
            organisation_id=member.organisation_id,
            action="member.reset_link",
            subject=member.id,
        )
        return {"email": member.email, "path": password_path(kind, token), "token": token}


def disable_operator(engine: Engine, email: str) -> Member:
    """Shut an operator out: sessions end, keys stop. `Conflict` LAST_OWNER for the last one."""
    with transaction(engine) as session:
        return disable_member(session, _operator_named(session, email), actor=HOST)


def _operator(session: Session) -> Organisation | None:
    return session.exec(select(Organisation).where(Organisation.kind == "operator")).first()


def _people(session: Session, operator: Organisation) -> list[Member]:
    return list(session.exec(select(Member).where(Member.organisation_id == operator.id).order_by(Member.email)))


def _operator_named(session: Session, email: str) -> Member:
    operator = _operator(session)
    people = _people(session, operator) if operator else []
    for member in people:
        if member.email == email.strip().lower():
            return member
    raise NotFound(
        "OPERATOR_NOT_FOUND",
        zh=f"运营方没有 {email[:80]}",
        en=f"{email[:80]} is none of the operator's people",
        remedy_zh="algomart operator list 列出全部",
        remedy_en="algomart operator list shows them all",
        field="email",
    )


def _create_operator(session: Session) -> Member:
    organisation = Organisation(
        id=new_id("org"), kind="operator", name_zh="运营方", name_en="Operator", slug="operator", status="approved"
    )
    member = add_member(session, organisation, email=FIRST_EMAIL, name="Operator", role="owner")
    audit.record(
        session, actor="system", organisation_id=organisation.id, action="operator.create", subject=organisation.id
    )
    return member
