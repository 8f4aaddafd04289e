"""The demonstration market: organisations, people and keys that a first `algomart up` makes.

Everything here is marked as demonstration (`is_demo`, codes of division 000000, filings that read 演示-不是备案号) and
counts in no figure. `algomart up --no-demo` makes none of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.catalogue.filings import DEMO_NUMBER_PREFIX, register_filing
from marketplace.catalogue.tables import Filing
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.ids import new_id
from marketplace.keys.authentication import scopes_of_kind
from marketplace.keys.service import create_key, revoke_key
from marketplace.keys.tables import ApiKey
from marketplace.keys.tokens import fingerprint, new_token
from marketplace.organisations import audit
from marketplace.organisations.passwords import hash_password
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import Member, Organisation
from marketplace.organisations.uscc import demo_code

KEYS_FILE = "demo-keys.json"
LOGINS_FILE = "demo-logins.json"
DEMO_FILING_NUMBER = f"{DEMO_NUMBER_PREFIX}-0001"


@dataclass(frozen=True, slots=True)
class DemoOrganisation:
    """One demonstration organisation. `people` {key name in demo-keys.json: (e-mail, name, role)}."""

    slug: str
    kind: str
    name_zh: str
    name_en: str
    number: int
    town: str
    people: dict[str, tuple[str, str, str]]


ORGANISATIONS = (
    DemoOrganisation(
        "demo-operator", "operator", "算法超市运营中心(演示)", "AlgoMart operator (demonstration)", 1, "松山湖",
        {
            "operator": ("operator@demo.example", "陈审核", "owner"),
            "operator2": ("operator2@demo.example", "林复核", "owner"),
        },
    ),
    DemoOrganisation(
        "dongzhi", "vendor", "东智工业算法(演示)", "Dongzhi Industrial Algorithms (demonstration)", 2, "松山湖",
        {"vendor": ("vendor@demo.example", "周工", "owner")},
    ),
    DemoOrganisation(
        "demo-factory", "enterprise", "东莞演示制造厂", "Demonstration Works, Dongguan", 3, "长安",
        {
            "factory": ("factory@demo.example", "王厂长", "owner"),
            "engineer": ("engineer@demo.example", "李工", "member"),
        },
    ),
)  # fmt: skip
KEY_NAMES = ("operator", "operator2", "vendor", "factory", "engineer")  # exactly these stand in demo-keys.json


def seed_organisations(engine: Engine, home: Path) -> dict[str, str]:
    """Make the demonstration organisations and their people once; answer the keys, made anew if their file is lost.

    Writes `demo-keys.json` (key name → API key) and, when people are made, `demo-logins.json` (e-mail → password), both
    0600.
    """
    keys_path = home / KEYS_FILE
    with transaction(engine) as session:
        logins = _seed_people(session)
        kept = _kept_keys(session, keys_path)
        keys = kept or _make_keys(session)
        if session.exec(select(Filing).where(Filing.number == DEMO_FILING_NUMBER)).first() is None:
            register_filing(
                session,
                number=DEMO_FILING_NUMBER,
                kind="备案",
                model_name="演示基础模型",
                holder="东智工业算法(演示)",
                valid_from=policy_date(now_ms()).replace(month=1, day=1).isoformat(),
                actor="system",
                is_demo=True,
            )
    if logins:
        write_secret(home / LOGINS_FILE, logins)
    if not kept:
        write_secret(keys_path, keys)
    return keys


def demo_member(engine: Engine, key_name: str) -> tuple[Organisation, Member]:
    """The organisation and person behind a name in `demo-keys.json`."""
    email = next(o.people[key_name][0] for o in ORGANISATIONS if key_name in o.people)
    with reading(engine) as session:
        member = session.exec(select(Member).where(Member.email == email)).one()
        return session.get_one(Organisation, member.organisation_id), member


def add_demo_vendor(session: Session, slug: str, name_zh: str = "", name_en: str = "") -> Organisation:
    """A further demonstration vendor, for a starter whose vendor is not among those above."""
    organisation = Organisation(
        id=new_id("org"),
        kind="vendor",
        name_zh=name_zh or f"{slug}(演示)",
        name_en=name_en or f"{slug} (demonstration)",
        slug=slug,
        status="approved",
        is_demo=True,
    )
    session.add(organisation)
    session.flush()
    audit.record(
        session, actor="system", organisation_id=organisation.id, action="demo.organisation", subject=organisation.id
    )
    return organisation


def write_secret(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that only the owner can read, whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(content, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
    partial.replace(path)


def _seed_people(session: Session) -> dict[str, str]:
    """The organisations and members that are not there yet; answers the passwords made, by e-mail."""
    logins: dict[str, str] = {}
    for wanted in ORGANISATIONS:
        organisation = session.exec(select(Organisation).where(Organisation.slug == wanted.slug)).first()
        if organisation is not None:
            continue
        organisation = Organisation(
            id=new_id("org"),
            kind=wanted.kind,
            name_zh=wanted.name_zh,
            name_en=wanted.name_en,
            slug=wanted.slug,
            uscc=demo_code(wanted.number),
            status="approved",
            legal_person="演示",
            town=wanted.town,
            is_demo=True,
        )
        for email, name, role in wanted.people.values():
            logins[email] = new_token()[:16]
            member = add_member(session, organisation, email=email, name=name, role=role)
            member.password_hash, member.status = hash_password(logins[email]), "active"
        audit.record(
            session,
            actor="system",
            organisation_id=organisation.id,
            action="demo.organisation",
            subject=organisation.id,
        )
    return logins


def _kept_keys(session: Session, path: Path) -> dict[str, str] | None:
    """The keys of an earlier start, if their file is whole and every one of them is still in the database."""
    try:
        keys: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    prints = [fingerprint(str(keys.get(name, ""))) for name in KEY_NAMES]
    known = session.exec(select(ApiKey.sha256).where(col(ApiKey.sha256).in_(prints))).all()
    return keys if len(known) == len(KEY_NAMES) else None


def _make_keys(session: Session) -> dict[str, str]:
    keys: dict[str, str] = {}
    for wanted in ORGANISATIONS:
        organisation = session.exec(select(Organisation).where(Organisation.slug == wanted.slug)).one()
        for key_name, (email, _, _) in wanted.people.items():
            if key_name not in KEY_NAMES:
                continue
            member = session.exec(select(Member).where(Member.email == email)).one()
            _revoke_old(
                session, session.exec(select(ApiKey).where(ApiKey.member_id == member.id, ApiKey.name == "demo"))
            )
            _, keys[key_name] = create_key(
                session,
                organisation,
                name="demo",
                scopes=scopes_of_kind(organisation.kind),
                actor="system",
                member_id=member.id,
                at_ms=now_ms(),
            )
    return {name: keys[name] for name in KEY_NAMES}


def _revoke_old(session: Session, keys: Iterable[ApiKey]) -> None:
    for key in keys:
        revoke_key(session, key, actor="system", at_ms=now_ms())
