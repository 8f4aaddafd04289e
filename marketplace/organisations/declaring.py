"""What an organisation declares about itself, by which related parties are known: who represents it, who holds it,
where it is reached. Each declaration is kept whole in the audit log; the row has the newest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlmodel import Session

from marketplace.organisations import audit, notices
from marketplace.organisations.tables import Organisation
from marketplace.organisations.uscc import is_valid
from model_store.errors import BadInput

MAX_SHAREHOLDERS = 50
MAX_CHARACTERS = 120
FIELDS = ("legal_person", "controllers", "shareholders", "address", "phone")


def declare(session: Session, organisation: Organisation, declared: Mapping[str, Any], *, actor: str) -> Organisation:
    """Replace what the organisation declares; the operators are told. `BadInput` SHAREHOLDERS_INVALID."""
    fill(organisation, declared)
    session.add(organisation)
    audit.record(
        session,
        actor=actor,
        organisation_id=organisation.id,
        action="organisation.declare",
        subject=organisation.id,
        **{name: getattr(organisation, name) for name in FIELDS},
    )
    notices.notify_operators(
        session,
        "ORGANISATION_DECLARED",
        zh=f"{organisation.name_zh} 更改了股东与联系方式等申报信息",
        en=f"{organisation.name_en or organisation.name_zh} changed what it declares of its holders and contacts",
        link=f"/city/organisations/{organisation.id}",
    )
    return organisation


def fill(organisation: Organisation, declared: Mapping[str, Any]) -> None:
    """Write a declaration into the row, trimmed and checked."""
    for name in ("legal_person", "address", "phone"):
        setattr(organisation, name, " ".join(str(declared.get(name, "")).split())[:MAX_CHARACTERS])
    codes = [code_of(code) for code in declared.get("controllers") or ()]
    organisation.controllers = sorted({code for code in codes if code})
    organisation.shareholders = check_shareholders(declared.get("shareholders") or ())


def code_of(text: str) -> str:
    """A credit code in capitals without spaces; any other code of a person or firm as it was written."""
    code = "".join(text.split()).upper()
    return code if is_valid(code) else text.strip()[:MAX_CHARACTERS]


def check_shareholders(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`[{name, code, share_bp}]`; `BadInput` SHAREHOLDERS_INVALID for one without a name, a share outside 0–100%, more
    than 100% in all, or more than 50 of them."""
    found: list[dict[str, Any]] = [
        {
            "name": " ".join(str(row["name"]).split())[:MAX_CHARACTERS],
            "code": code_of(str(row.get("code") or "")),
            "share_bp": int(row["share_bp"]),
        }
        for row in rows
    ]
    lawful = len(found) <= MAX_SHAREHOLDERS and all(row["name"] and 0 <= row["share_bp"] <= 10_000 for row in found)
    if not lawful or sum(row["share_bp"] for row in found) > 10_000:
        raise shareholders_invalid()
    return found


def shareholders_of(text: str) -> list[dict[str, Any]]:
    """One shareholder a line, `name | code | share%`, code or share left out where unknown: what a form has."""
    found = []
    plain = text.replace("\uff5c", "|").replace("\uff05", "%")  # as a Chinese keyboard writes them
    for line in filter(None, (line.strip() for line in plain.splitlines())):
        name, *rest = (part.strip() for part in line.split("|"))
        share = next((part for part in rest if part.endswith("%")), "0%")
        code = next((part for part in rest if part and part != share), "")
        try:
            share_bp = round(float(share.rstrip("%")) * 100)
        except (ValueError, OverflowError):
            raise shareholders_invalid() from None
        found.append({"name": name, "code": code, "share_bp": share_bp})
    return check_shareholders(found)


def lines_of(shareholders: Iterable[Mapping[str, Any]]) -> str:
    """The inverse, for a form that is filled in already."""
    return "\n".join(f"{row['name']} | {row['code']} | {row['share_bp'] / 100:g}%" for row in shareholders)


def shareholders_invalid() -> BadInput:
    return BadInput(
        "SHAREHOLDERS_INVALID",
        zh=f"股东须有名称, 比例为 0 至 100%, 合计不超过 100%, 最多 {MAX_SHAREHOLDERS} 个",
        en=f"a shareholder has a name and a share of 0 to 100%, 100% in all at most; {MAX_SHAREHOLDERS} of them",
        remedy_zh="每行一个: 名称 | 代码 | 比例, 如 东莞某投资公司 | 9144… | 30%",
        remedy_en="one a line: name | code | share, such as Some Holding | 9144… | 30%",
        field="shareholders",
    )
