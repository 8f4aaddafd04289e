"""The declarations of those who deal with each other, and of those who hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlmodel import Session, col, select

from marketplace.findings.found import Contract, Declared
from marketplace.organisations.tables import Member, Organisation
from marketplace.vouchers.relations import Party
from marketplace.vouchers.sale import holders_above, party_of

CHUNK = 500


def declarations(session: Session, contracts: Sequence[Contract]) -> tuple[dict[str, Declared], dict[str, Party]]:
    """By organisation what callers and providers declare, and by credit code who is above them."""
    ids = sorted({each for row in contracts for each in (row.organisation, row.provider)})
    found: dict[str, Declared] = {}
    for start in range(0, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        domains = defaultdict(set)
        query = select(Member.organisation_id, Member.email).where(col(Member.organisation_id).in_(some))
        for organisation, email in session.exec(query.where(Member.status != "disabled")):
            domains[organisation].add(email.rpartition("@")[2].lower())
        for row in session.exec(select(Organisation).where(col(Organisation.id).in_(some))):
            held = frozenset(domains[row.id] - {""})
            found[row.id] = Declared(
                party_of(row), row.name_zh, row.name_en or row.name_zh, row.address, row.phone, held
            )
    above: dict[str, Party] = {}
    parties = [each.party for each in found.values()]
    for start in range(0, len(parties), CHUNK):
        above |= holders_above(session, *parties[start : start + CHUNK])
    return found, above
