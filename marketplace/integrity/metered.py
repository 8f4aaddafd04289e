"""What was metered against what was charged: usage rows, meters and P5 less P13, per reservation, contract and lease.

Independent of each other: a usage row is what the node's journal says, a meter what ingest counted, an entry what was
posted. All that was used under a reservation rounds down, cumulatively, to exactly the gross fen posted; the voucher's
share of it rounds down to the subsidy posted, but for fen that wait for the gross fen that carries them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, func, select

from marketplace.claims.tables import Correction
from marketplace.ledger import accounts
from marketplace.ledger.replay import PORTION
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.organisations.tables import AuditEvent
from marketplace.usage.tables import SelfPayMeter, Usage
from marketplace.vouchers.tables import LeaseRow, Reservation
from serving.metering import MICRO_PER_FEN

_GROSS = sa.or_(
    col(LedgerEntry.account).startswith(accounts.payable_provider("")[:-1], autoescape=True),
    col(LedgerEntry.account).in_((accounts.FEE, accounts.VAT)),
)
_SUBSIDY = col(LedgerEntry.account).startswith(accounts.used("")[:-1], autoescape=True)
_CHUNK = 10_000
SETTLE_MS = 10_000  # no transaction takes as long from its first stamp to its commit
Note = Callable[..., None]


@dataclass(slots=True)
class Used:
    """What the usage rows of one reservation (or self-paid contract) come to, corrected records off, and the fen that
    the ledger has for it. `corrections`: how many records were taken back."""

    gross_micro: int = 0
    eligible_micro: int = 0
    corrections: int = 0
    gross_fen: int = 0
    subsidy_fen: int = 0


@dataclass(slots=True)
class Metered:
    """By reservation, or contract where there is none; and by lease what its voucher pays a share of, in micro-fen."""

    owners: dict[str, Used] = field(default_factory=lambda: defaultdict(Used))
    leases: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def check_metered(session: Session, charged: dict[str, int], note: Note) -> None:
    """`note(what, of, kept, rebuilt)` for each difference. `charged`: Q.used account → fen of P5 less P13.

    `what`: `meter` (micro-fen kept, against the sum of usage rows) or `charge` (fen posted, against what the usage
    rounds to): [gross, of it eligible or subsidy]. Of a lease: [eligible micro-fen].
    """
    found = metered(session)
    for row in _reservations(session):
        reservation, ratio, meter = row[0], (row[1], row[2]), row[3:]
        used = found.owners.pop(reservation, Used())
        _check(note, reservation, used, ratio, meter, charged.get(accounts.used(reservation), 0))
    meters = select(SelfPayMeter).where(SelfPayMeter.month == "").order_by(col(SelfPayMeter.subscription_id))
    for own in session.exec(meters.execution_options(yield_per=_CHUNK)):
        used = found.owners.pop(own.subscription_id, Used())
        _check(note, own.subscription_id, used, (0, 1), (own.cum_gross_micro, 0, own.posted_gross_fen, 0), 0)
    for owner, used in sorted(found.owners.items()):  # charged or used, and no meter knows of it
        note(what="meter", of=owner, kept=[], rebuilt=[used.gross_micro, used.eligible_micro])
    for lease, kept in _leases(session):
        rebuilt = found.leases.pop(lease, 0)
        if kept != rebuilt:
            note(what="meter", of=lease, kept=[kept], rebuilt=[rebuilt])
    for lease, rebuilt in sorted(found.leases.items()):
        if rebuilt:
            note(what="meter", of=lease, kept=[], rebuilt=[rebuilt])


def _check(
    note: Note, owner: str, used: Used, ratio: tuple[int, int], meter: tuple[int, ...], subsidy_fen: int
) -> None:
    cum_gross, cum_eligible, posted_gross, posted_subsidy = meter
    if (cum_gross, cum_eligible) != (used.gross_micro, used.eligible_micro):
        note(what="meter", of=owner, kept=[cum_gross, cum_eligible], rebuilt=[used.gross_micro, used.eligible_micro])
    gross, subsidy = decide_due(used, *ratio)
    waiting = subsidy - subsidy_fen
    right = used.gross_fen == posted_gross == gross and subsidy_fen == posted_subsidy
    if not right or not 0 <= waiting <= decide_may_wait(used.corrections):
        note(what="charge", of=owner, kept=[used.gross_fen, subsidy_fen], rebuilt=[gross, subsidy])


def decide_due(used: Used, num: int, den: int) -> tuple[int, int]:
    """Whole fen of gross that usage comes to, and of subsidy at most: num / den of what is eligible, and of the gross
    (`usage.rounding.accumulate`)."""
    gross = used.gross_micro // MICRO_PER_FEN
    return gross, min(used.eligible_micro * num // (den * MICRO_PER_FEN), gross * num // den)


def decide_may_wait(corrections: int) -> int:
    """Fen of subsidy that may wait for a gross fen to carry them: less than a fen of gross is never posted, so one, and
    one more for each record taken back, whose fraction of a fen later usage may fill up again without any gross."""
    return 1 + corrections


def metered(session: Session, at_ms: int | None = None) -> Metered:
    """Everything summed by the database, a few rows a lease and a transfer here. `at_ms`: as it was at that instant."""
    found = Metered()
    for owner, lease, kind, micro, corrections in (*_used(session, at_ms), *_corrected(session, at_ms)):
        used = found.owners[owner]
        used.gross_micro += micro
        used.corrections += corrections
        if kind == "subsidised":
            used.eligible_micro += micro
            found.leases[lease] += micro
    for owner, gross, subsidy in _posted(session, at_ms):
        found.owners[owner].gross_fen += gross
        found.owners[owner].subsidy_fen += subsidy
    return found


def _in_by(at_ms: int) -> Any:
    """Whether a usage record was in the books: carried by what was posted by then, or ingested for good. A record is
    stamped before its transaction posts and commits, so the last moments count by what was posted alone."""
    return sa.or_(col(LedgerTransfer.posted_at_ms) <= at_ms, col(Usage.ingested_at_ms) <= at_ms - SETTLE_MS)


def _used(session: Session, at_ms: int | None) -> Iterator[tuple[str, str, str, int, int]]:
    by = (col(Usage.reservation_id), col(Usage.subscription_id), col(Usage.lease_id), col(Usage.lease_kind))
    query = (
        sa.select(*by, func.sum(col(Usage.amount_micro)))
        .where(col(Usage.status) != "quarantined", col(Usage.lease_kind) != "free")
        .group_by(*by)
    )
    if at_ms is not None:
        carrier = col(LedgerTransfer.id) == col(Usage.transfer_id)
        query = query.join(LedgerTransfer, carrier, isouter=True).where(_in_by(at_ms))
    for reservation, contract, lease, kind, micro in session.connection().execute(query):
        yield reservation or contract, lease, kind, int(micro), 0


def _corrected(session: Session, at_ms: int | None) -> Iterator[tuple[str, str, str, int, int]]:
    by = (col(Usage.reservation_id), col(Usage.subscription_id), col(Usage.lease_id), col(Usage.lease_kind))
    query = (
        sa.select(*by, col(Usage.amount_micro))
        .join(Correction, col(Correction.usage_id) == col(Usage.usage_id))
        .where(col(Correction.state) == "posted")
    )
    if at_ms is not None:
        reversal = aliased(LedgerTransfer)
        told = sa.select(col(AuditEvent.subject)).where(
            col(AuditEvent.action) == "correction.post", col(AuditEvent.at_ms) <= at_ms
        )
        less_than_a_fen = sa.and_(col(Correction.transfer_id).is_(None), col(Correction.id).in_(told))
        query = (
            query.join(LedgerTransfer, col(LedgerTransfer.id) == col(Usage.transfer_id), isouter=True)
            .join(reversal, col(reversal.id) == col(Correction.transfer_id), isouter=True)
            .where(_in_by(at_ms), sa.or_(col(reversal.posted_at_ms) <= at_ms, less_than_a_fen))
        )
    for reservation, contract, lease, kind, micro in session.connection().execute(query):
        yield reservation or contract, lease, kind, -micro, 1


def _posted(session: Session, at_ms: int | None) -> Iterator[tuple[str, int, int]]:
    """(owner, gross fen, of it subsidy) of each P5 and, negative, P13. Whose a P5 is its event key says, even where it
    has no subsidy."""
    owners = select(Correction.id, Usage.reservation_id, Usage.subscription_id)
    rows = session.exec(owners.join(Usage, col(Usage.usage_id) == col(Correction.usage_id)))
    owner_of = {correction: reservation or contract for correction, reservation, contract in rows}
    first, last = session.exec(select(func.min(LedgerTransfer.id), func.max(LedgerTransfer.id))).one()
    fen = col(LedgerEntry.amount_fen)
    query = (
        sa.select(
            col(LedgerTransfer.kind),
            col(LedgerTransfer.event_key),
            func.sum(sa.case((_GROSS, -fen), else_=0)),
            func.sum(sa.case((_SUBSIDY, fen), else_=0)),
        )
        .join(LedgerEntry, col(LedgerEntry.transfer_id) == col(LedgerTransfer.id))
        .where(col(LedgerTransfer.kind).in_(("P5", "P13")))
        .group_by(col(LedgerTransfer.id), col(LedgerTransfer.kind), col(LedgerTransfer.event_key))
    )
    if at_ms is not None:
        query = query.where(col(LedgerTransfer.posted_at_ms) <= at_ms)
    for start in range(first or 0, (last or -1) + 1, PORTION):
        within = (col(LedgerTransfer.id) >= start, col(LedgerTransfer.id) < start + PORTION)
        for kind, event, gross, subsidy in session.connection().execute(query.where(*within)):
            of = event.split(":")[1]
            yield (of if kind == "P5" else owner_of.get(of, of)), int(gross), int(subsidy)


def _reservations(session: Session) -> Iterator[tuple[Any, ...]]:
    """(id, ratio's two numbers, gross and eligible micro-fen of its meter, gross and subsidy fen posted by it)."""
    row = Reservation
    terms = (row.id, row.ratio_num, row.ratio_den)
    meter = (row.cum_gross_micro, row.cum_eligible_micro, row.posted_gross_fen, row.posted_subsidy_fen)
    query = sa.select(*map(col, terms), *map(col, meter)).order_by(col(row.id))
    for found in session.connection().execute(query.execution_options(yield_per=_CHUNK)):
        yield tuple(found)


def _leases(session: Session) -> Iterator[tuple[str, int]]:
    query = select(LeaseRow.id, LeaseRow.eligible_micro).order_by(col(LeaseRow.id))
    yield from session.exec(query.execution_options(yield_per=_CHUNK))
