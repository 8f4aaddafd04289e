"""The demonstration factory's voucher, issued by two persons, and its subscriptions to the starter shelf."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlmodel import Session, select

from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.demo import demo_member
from marketplace.organisations.tables import Member, Organisation
from marketplace.vouchers import applications, issuing, subscriptions
from marketplace.vouchers.tables import Voucher

PROGRAMME = "demo-deduct"
FACE_FEN = 500_000  # 5,000 yuan
CONTRACT_FEN = 10_000  # 100 yuan a model: a third of it is set aside from the voucher
MONTHLY_CAP_FEN = 5_000


def seed_voucher(engine: Engine) -> None:
    """Issue the demonstration voucher once, and subscribe the factory to each starter that it has not taken yet.

    With `self_pay` under a monthly cap, so that calls go on when the voucher is used up.
    """
    factory, buyer = demo_member(engine, "factory")
    _, first = demo_member(engine, "operator")
    _, second = demo_member(engine, "operator2")
    with transaction(engine) as session:
        if session.exec(select(Voucher.id).where(Voucher.organisation_id == factory.id)).first() is None:
            _issue(session, factory, buyer, first, second)
    with reading(engine) as session:
        taken = {
            row.listing_id
            for row in subscriptions.list_subscriptions(session, organisation_id=factory.id, limit=10_000)[0]
        }
        starters = list(session.exec(select(Listing).where(Listing.is_starter, Listing.status == "listed")))
    with transaction(engine) as session:
        for listing in starters:
            if listing.id not in taken:
                subscriptions.subscribe(
                    session,
                    factory.id,
                    listing,
                    contract_fen=CONTRACT_FEN,
                    on_voucher_end="self_pay",
                    monthly_cap_fen=MONTHLY_CAP_FEN,
                    actor=buyer.id,
                    at_ms=now_ms(),
                )


def _issue(session: Session, factory: Organisation, buyer: Member, first: Member, second: Member) -> None:
    at_ms = now_ms()
    row = applications.create_application(
        session, factory, PROGRAMME, requested_fen=FACE_FEN, purpose="演示", actor=buyer.id
    )
    applications.submit(session, row, actor=buyer.id)
    applications.check(session, row, actor=first.id, at_ms=at_ms)
    applications.decide(session, row, "approve", actor=first.id, at_ms=at_ms, note="演示")
    applications.publish(session, row, actor=first.id, at_ms=at_ms)
    applications.confirm(session, row, actor=first.id, at_ms=at_ms)
    voucher = issuing.propose(session, row, FACE_FEN, member=first.id, at_ms=at_ms)
    issuing.approve(session, voucher, member=second.id, at_ms=at_ms)
