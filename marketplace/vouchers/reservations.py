"""Reservations: entitlement set aside from vouchers for one contract (P3), in burn order, within ratio × contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from math import ceil
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.clock import policy_date
from marketplace.ids import new_id
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import balance, balances, lock_accounts, post_all
from marketplace.organisations import audit
from marketplace.vouchers.closing import release_idle
from marketplace.vouchers.eligibility import (
    Burnable,
    Offer,
    Reason,
    VoucherFact,
    breadth,
    burn_order,
    decide_coverage,
    decide_share,
)
from marketplace.vouchers.grants import ceil_div, voucher_share_micro
from marketplace.vouchers.programme import ProgrammeFile, Ratio, decide_ratio
from marketplace.vouchers.relations import Relation
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import (
    LIVE,
    NEVER_ISSUED,
    Application,
    OtherSubsidy,
    Programme,
    Reservation,
    Subscription,
    Voucher,
)
from serving.metering import MICRO_PER_FEN


@dataclass(frozen=True, slots=True)
class Held:
    """A voucher with its programme's rules, as read in this transaction."""

    voucher: Voucher
    programme: Programme
    rules: ProgrammeFile

    @property
    def fact(self) -> VoucherFact:
        voucher = self.voucher
        state = voucher.state_before if voucher.state == "closed" else voucher.state
        return VoucherFact(state, date.fromisoformat(voucher.use_by), self.programme.state)

    @property
    def burnable(self) -> Burnable:
        return Burnable(
            self.voucher.priority,
            date.fromisoformat(self.voucher.use_by),
            breadth(self.rules),
            self.voucher.issued_at_ms or 0,
            self.voucher.id,
        )


@dataclass(frozen=True, slots=True)
class Buyer:
    """Who calls what under which contract: the facts that coverage is decided on."""

    subscription: Subscription
    offer: Offer
    relation: Relation | None
    at_ms: int
    declared_fen: int = 0  # other subsidies on the contract


def held_vouchers(session: Session, organisation_id: str) -> list[Held]:
    """Every voucher ever issued to the organisation, in burn order."""
    query = (
        select(Voucher, Programme)
        .join(Programme, col(Programme.id) == col(Voucher.programme_id))
        .where(Voucher.organisation_id == organisation_id, col(Voucher.state).not_in(NEVER_ISSUED))
    )
    found = {v.id: Held(v, p, rules_of(p)) for v, p in session.exec(query)}
    return [found[burnable.voucher] for burnable in burn_order(held.burnable for held in found.values())]


def coverage(held: Held, buyer: Buyer) -> Reason | None:
    """Why this voucher does not pay, its balance left aside; None where it does."""
    return decide_coverage(
        held.rules,
        held.fact,
        buyer.offer,
        related=held.rules.relates(buyer.relation),
        contract_fen=buyer.subscription.contract_fen,
        day=policy_date(buyer.at_ms),
        declared_fen=buyer.declared_fen,
    ).reason


def declared_fen(session: Session, subscription_id: str) -> int:
    """Other subsidies that stand declared on a contract, together."""
    query = select(func.sum(OtherSubsidy.amount_fen)).where(
        OtherSubsidy.subscription_id == subscription_id, col(OtherSubsidy.withdrawn_at_ms).is_(None)
    )
    return int(session.exec(query).one() or 0)


def taken_of_contract(session: Session, subscription_id: str) -> int:
    """What vouchers took of a contract: all of a reservation while it lives, what was used of it afterwards."""
    return sum(fen for fen, _ in taken_at_ratios(session, subscription_id))


def taken_at_ratios(session: Session, subscription_id: str) -> list[tuple[int, Fraction]]:
    """As `taken_of_contract`, by reservation: fen, and the ratio that they are at."""
    rows = session.exec(select(Reservation).where(Reservation.subscription_id == subscription_id))
    return [(taken_of(row), Fraction(row.ratio_num, row.ratio_den)) for row in rows]


def taken_of(row: Reservation) -> int:
    """All of a reservation while it lives, what was used of it afterwards."""
    return row.amount_fen - row.released_fen if row.state in LIVE else row.posted_subsidy_fen


def live_reservations(session: Session, subscription_id: str) -> list[Reservation]:
    """The reservations that a contract may still draw on, locked, oldest first."""
    query = select(Reservation).where(Reservation.subscription_id == subscription_id, col(Reservation.state).in_(LIVE))
    return list(session.exec(query.order_by(col(Reservation.id)).with_for_update()))


def decide_amount(available_fen: int, share_fen: int, already_fen: int) -> int:
    """Fen to reserve: what the vouchers' share of the contract still allows, at most what the voucher has."""
    return max(0, min(available_fen, share_fen - already_fen))


def decide_already(taken: Iterable[tuple[int, Fraction]], ratio: Fraction) -> int:
    """What was set aside of a contract so far, in fen at this ratio. `taken`: fen, and the ratio that they are at.

    Each stands for the gross that it pays its share of: 20 fen at 1/3 are 60 of the contract, which are 40 fen at 2/3.
    Rounded up, so that all ratios together never pay their shares of more than the contract.
    """
    return ceil(sum((fen / theirs for fen, theirs in taken), Fraction(0)) * ratio)


def foreseen(
    taken: Iterable[tuple[int, Fraction]], contract_fen: int, rest: Fraction
) -> list[tuple[int | Fraction, Fraction]]:
    """A contract's gross fen by ratio, for `decide_share`: what was set aside stands for the gross that it pays its
    share of, and nothing is set aside of the rest yet, which is seen at the ratio `rest`."""
    parts = [(fen / ratio, ratio) for fen, ratio in taken]
    left = contract_fen - sum((gross for gross, _ in parts), Fraction(0))
    return [*parts, (max(left, Fraction(0)), rest)]


def reserve_more(
    session: Session, buyer: Buyer, vouchers: list[Held], need_micro: int = 0
) -> tuple[list[Reservation], list[Reason]]:
    """P3 for every voucher that covers the offer and has something left; with the reasons of those that do not.

    A reservation is at one ratio. `need_micro`: a call in hand, for which what idles at another ratio may make way.

    Without stacking, one contract is paid for by one programme: the first that ever paid anything of it; with
    `contract_once` it pays for a contract out of one voucher only. Other
    subsidies declared on the contract lower the share, or rule the voucher out (`decide_share`).
    """
    subscription = buyer.subscription
    prior = list(session.exec(select(Reservation).where(Reservation.subscription_id == subscription.id)))
    programmes = {h.programme.code for h in vouchers if h.voucher.id in {r.voucher_id for r in prior}}
    paying = _paying(vouchers, prior)
    made: list[Reservation] = []
    willing, reasons = _willing(session, buyer, vouchers)
    _lock_rooms(session, buyer, willing)
    for held, ratio, _ in willing:
        if programmes and held.programme.code not in programmes and held.rules.stacking == "none":
            reasons.append(Reason.CONTRACT_USED_UP)
            continue
        if held.rules.contract_once and paying.get(held.programme.code, held.voucher.id) != held.voucher.id:
            reasons.append(Reason.CONTRACT_ONCE)
            continue
        room, fen = _room(session, buyer, held, ratio)
        short = ceil_div(voucher_share_micro(need_micro, ratio.num, ratio.den), MICRO_PER_FEN) - fen
        if short > 0 and _make_way(session, held, ratio, prior, short, buyer.at_ms):
            room, fen = _room(session, buyer, held, ratio)
        if fen == 0:
            reasons.append(Reason.VOUCHER_EXHAUSTED if room == 0 else Reason.CONTRACT_USED_UP)
            continue
        made.append(_reserve(session, held, buyer, ratio, fen))
        programmes.add(held.programme.code)
        paying.setdefault(held.programme.code, held.voucher.id)
    return made, reasons


def _room(session: Session, buyer: Buyer, held: Held, ratio: Ratio) -> tuple[int, int]:
    """What the voucher has left, and how much of it may be set aside for the contract at this ratio."""
    room, contract_fen = balance(session, accounts.available(held.voucher.id)), buyer.subscription.contract_fen
    taken = taken_at_ratios(session, buyer.subscription.id)
    fen = decide_amount(room, _limit(buyer, ratio), decide_already(taken, ratio.fraction))
    if buyer.declared_fen:  # what declared subsidies leave is left for all ratios together
        parts = foreseen(taken, contract_fen, ratio.fraction)
        share = decide_share(held.rules, parts, declared_fen=buyer.declared_fen)
        fen = decide_amount(fen, share.fen, sum(each for each, _ in taken))
    return room, fen


def _make_way(session: Session, held: Held, ratio: Ratio, prior: list[Reservation], short_fen: int, at_ms: int) -> bool:
    """Half of what idles in the contract's reservations of this voucher at another ratio goes back to it (P7), and at
    least what a call is short of; nothing where there is not so much. Half: models of two classes, called by turns,
    would else take all from each other with every lease."""
    freed = 0
    for row in prior:
        theirs = Fraction(row.ratio_num, row.ratio_den)
        if row.voucher_id != held.voucher.id or row.state not in LIVE or theirs == ratio.fraction:
            continue
        needed = ceil(short_fen * max(Fraction(1), theirs / ratio.fraction))
        idle = balance(session, accounts.reserved(row.id), lock=True)
        if idle >= needed:
            freed += release_idle(session, row, at_ms, at_most=max(needed, ceil_div(idle, 2)))
            break
    session.flush()
    return freed > 0


def _willing(
    session: Session, buyer: Buyer, vouchers: list[Held]
) -> tuple[list[tuple[Held, Ratio, int]], list[Reason]]:
    """The vouchers that cover the offer, each with its ratio and the fen that vouchers may pay of the contract, all
    together; and why the others do not."""
    found: list[tuple[Held, Ratio, int]] = []
    reasons: list[Reason] = []
    taken = taken_at_ratios(session, buyer.subscription.id)
    for held in vouchers:
        reason = coverage(held, buyer)
        if reason is None:
            ratio = ratio_for(session, held, buyer.offer)
            parts = foreseen(taken, buyer.subscription.contract_fen, ratio.fraction)
            share = decide_share(held.rules, parts, declared_fen=buyer.declared_fen)
            reason = share.reason
        if reason is None:
            found.append((held, ratio, share.fen))
        else:
            reasons.append(reason)
    return found, reasons


def _lock_rooms(session: Session, buyer: Buyer, willing: list[tuple[Held, Ratio, int]]) -> None:
    """The vouchers' accounts, if there is anything to take, after the contract's cap: `vouchers.locks`."""
    codes = [accounts.available(held.voucher.id) for held, _, _ in willing]
    if any(fen for _, _, fen in willing) and any(balances(session, codes).values()):
        caps.open_cap(session, accounts.cap_contract(buyer.subscription.id), _limit(buyer, willing[0][1]))
    lock_accounts(session, codes)


def _limit(buyer: Buyer, ratio: Ratio) -> int:
    return buyer.subscription.contract_fen * ratio.num // ratio.den


def _paying(vouchers: list[Held], prior: list[Reservation]) -> dict[str, str]:
    """Programme's code → the first of its vouchers that pays, or has paid, of a contract. One whose reservation came to
    nothing does not count."""
    codes = {held.voucher.id: held.programme.code for held in vouchers}
    found: dict[str, str] = {}
    for row in sorted(prior, key=lambda row: row.id):
        if row.state in LIVE or row.posted_subsidy_fen:
            found.setdefault(codes[row.voucher_id], row.voucher_id)
    return found


def _reserve(session: Session, held: Held, buyer: Buyer, ratio: Ratio, fen: int) -> Reservation:
    subscription = buyer.subscription
    limit = _limit(buyer, ratio)
    cap = caps.open_cap(session, accounts.cap_contract(subscription.id), limit)
    if limit > cap.limit_fen:  # the contract was raised since
        cap.limit_fen = limit
    caps.hold(session, cap, fen)
    row = Reservation(
        id=new_id("rsv"),
        voucher_id=held.voucher.id,
        subscription_id=subscription.id,
        provider_id=subscription.provider_id,
        amount_fen=fen,
        ratio_num=ratio.num,
        ratio_den=ratio.den,
    )
    session.add(row)
    session.flush()
    post_all(session, [postings.p3_reserved(held.voucher.id, row.id, fen, buyer.at_ms)])
    audit.record(
        session,
        actor="system",
        organisation_id=subscription.organisation_id,
        action="reservation.hold",
        subject=row.id,
        voucher=held.voucher.id,
        subscription=subscription.id,
        fen=fen,
    )
    return row


def ratio_for(session: Session, held: Held, offer: Offer) -> Ratio:
    """What the voucher's programme pays of a call of this offer: it depends on the model (`ratio_rules`)."""
    years = firm_age_years(session.get_one(Application, held.voucher.application_id).evidence, held.voucher)
    return decide_ratio(held.rules, tier=offer.tier, filed=offer.filing is not None, firm_age_years=years)


def firm_age_years(evidence: list[dict[str, Any]], voucher: Voucher) -> int | None:
    """Whole years from the founding day given as evidence (`founded_on`) to the issue; None where it was not given."""
    for item in evidence:
        if item.get("code") == "founded-on" and voucher.issued_at_ms is not None:
            try:
                founded = date.fromisoformat(str(item.get("value", "")))
            except ValueError:
                return None
            issued = policy_date(voucher.issued_at_ms)
            return issued.year - founded.year - ((issued.month, issued.day) < (founded.month, founded.day))
    return None
