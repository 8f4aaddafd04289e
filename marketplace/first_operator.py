"""A production market starts with nobody in it: the first start leaves an invitation for the first operator.

The invitation lies in `$ALGOMART_HOME/operator-invitation.json` (0600), for whoever runs the machine; once it is used,
operators invite each other.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import select

from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.demo import write_secret
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.organisations.members import issue_token
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import Member, Organisation

INVITATION_FILE = "operator-invitation.json"
FIRST_EMAIL = "operator@localhost"


def invite_first_operator(engine: Engine, home: Path) -> bool:
    """Make the operator organisation if there is none, and an invitation as long as nobody has accepted one.

    Answers whether an invitation stands; the file is removed once an operator can log in.
    """
    path = home / INVITATION_FILE
    with transaction(engine) as session:
        operators = session.exec(select(Organisation).where(Organisation.kind == "operator")).all()
        ids = [row.id for row in operators]
        members = [row for row in session.exec(select(Member)) if row.organisation_id in ids]
        if any(member.status == "active" for member in members):
            path.unlink(missing_ok=True)
            return False
        if not operators:
            organisation = Organisation(
                id=new_id("org"),
                kind="operator",
                name_zh="运营方",
                name_en="Operator",
                slug="operator",
                status="approved",
            )
            members = [add_member(session, organisation, email=FIRST_EMAIL, name="Operator", role="owner")]
            audit.record(
                session,
                actor="system",
                organisation_id=organisation.id,
                action="operator.create",
                subject=organisation.id,
            )
        token = issue_token(session, members[0], "invitation", now_ms())
        email = members[0].email
    write_secret(path, {"email": email, "token": token, "accept_path": f"/login?invitation={token}"})
    return True
