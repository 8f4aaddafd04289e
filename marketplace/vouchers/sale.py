"""What a call is a sale of: under which listing, at which price, by which provider, and what a voucher sees in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlmodel import Session, col, select

from marketplace.catalogue.prices import price_at
from marketplace.catalogue.tables import Filing, Listing, PriceVersion
from marketplace.clock import end_of_day_ms, instant, start_of_day_ms
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.eligibility import FilingFact, Offer
from marketplace.vouchers.relations import LEAST_SHARE_BP, MAX_NODES, MAX_STEPS, Holding, Party, Relation, find_relation
from model_store.manifest import WEIGHT_REUSING_RELATIONS

MAX_DERIVATIVES = 20  # of a chain of derivatives


@dataclass(frozen=True, slots=True)
class Sale:
    """`sold_under`: the listing whose subscription, price and vendor apply. `price` None: free, and `free` says why
    (own | review | unpriced | zero)."""

    listing: Listing
    sold_under: Listing
    provider_id: str
    price: PriceVersion | None
    free: str = ""

    @property
    def is_derivative(self) -> bool:
        return self.listing.relation is not None or self.listing.parent_listing_id is not None


def find_sale(session: Session, listing: Listing, caller_id: str, at_ms: int, *, operator: bool = False) -> Sale:
    """The sale that a call of `listing` by `caller_id` would be.

    A private derivative is sold at its parent listing's derivative price, and its provider is the parent's vendor;
    where there is no such price there is no charge. One's own models are free, so is the operator's look at a draft.
    """
    parent = sold_under(session, listing)
    kind = "use" if parent.id == listing.id else "derivative"
    price = None
    if parent.organisation_id == caller_id:
        free = "own"
    elif operator and listing.status != "listed":
        free = "review"
    else:
        price = price_at(session, parent.id, kind, at_ms)
        free = "unpriced" if price is None else "" if price.micro_per_unit else "zero"
    return Sale(listing, parent, parent.organisation_id, price, free)


def sold_under(session: Session, listing: Listing) -> Listing:
    """The public listing that a private derivative is sold under; any other listing itself."""
    found, seen = listing, {listing.id}
    for _ in range(MAX_DERIVATIVES):
        if found.visibility != "private" or not found.parent_listing_id or found.parent_listing_id in seen:
            break
        parent = session.get(Listing, found.parent_listing_id)
        if parent is None:
            break
        seen.add(parent.id)
        found = parent
    return found


def next_price_change_ms(session: Session, sale: Sale, at_ms: int) -> int | None:
    """When the next price version takes effect that is already announced."""
    kind = "use" if sale.sold_under.id == sale.listing.id else "derivative"
    query = select(PriceVersion.effective_from_ms).where(
        PriceVersion.listing_id == sale.sold_under.id,
        PriceVersion.kind == kind,
        PriceVersion.effective_from_ms > at_ms,
    )
    return session.exec(query.order_by(col(PriceVersion.effective_from_ms)).limit(1)).first()


def offer_of(session: Session, sale: Sale) -> Offer:
    """What a voucher looks at: kind, relation chain, filing, tier."""
    listing = sale.listing
    reuses = not sale.is_derivative or listing.relation in WEIGHT_REUSING_RELATIONS
    filing = filing_row(session, listing)
    return Offer(
        is_derivative=sale.is_derivative,
        reuses_weights=reuses,
        filing=filing_fact(filing) if filing else None,
        tier=listing.tier,
    )


def filing_row(session: Session, listing: Listing) -> Filing | None:
    """The listing's own filing, or its root base's, carried over relations that reuse the parent's weights only.

    A derivative that is offered to the public as a generative service needs its own.
    """
    found, seen = listing, {listing.id}
    for _ in range(MAX_DERIVATIVES):
        if found.filing_id:
            return session.get(Filing, found.filing_id)
        if found.relation not in WEIGHT_REUSING_RELATIONS or found.genai_service == "public":
            return None
        next_id = found.parent_listing_id or found.root_base_listing_id
        parent = session.get(Listing, next_id) if next_id and next_id not in seen else None
        if parent is None:
            return None
        seen.add(parent.id)
        found = parent
    return None


def filing_fact(filing: Filing) -> FilingFact:
    last = date.fromisoformat(filing.valid_until) if filing.valid_until else None
    return FilingFact(filing.number, date.fromisoformat(filing.valid_from), last, filing.is_demo)


def filing_end_ms(offer: Offer) -> int | None:
    """The last millisecond that the offer's filing holds; None without a filing or a stated end."""
    return end_of_day_ms(offer.filing.last) if offer.filing and offer.filing.last else None


def filing_end_text(offer: Offer) -> str:
    """The same as ISO-8601 with zone, for a price line: "" where nothing ends."""
    end = filing_end_ms(offer)
    return instant(end).isoformat() if end is not None else ""


def filing_start_text(offer: Offer) -> str:
    """The first instant that the offer's filing holds, likewise: "" without a filing."""
    return instant(start_of_day_ms(offer.filing.first)).isoformat() if offer.filing else ""


def party_of(organisation: Organisation) -> Party:
    return Party(
        organisation=organisation.id,
        kind=organisation.kind,
        status=organisation.status,
        uscc=organisation.uscc or "",
        legal_person=organisation.legal_person,
        controllers=frozenset(organisation.controllers),
        is_demo=organisation.is_demo,
        shareholders=tuple(Holding(row["name"], row["code"], row["share_bp"]) for row in organisation.shareholders),
    )


def relation_between(session: Session, caller_id: str, provider_id: str) -> Relation | None:
    """How caller and provider are related by what they and those above them declare; a programme says from which share
    on it counts (`ProgrammeFile.relates`)."""
    caller, provider = (party_of(session.get_one(Organisation, each)) for each in (caller_id, provider_id))
    return find_relation(caller, provider, holders_above(session, caller, provider))


def are_related(session: Session, caller_id: str, provider_id: str) -> bool:
    """The same with the share that counts where no programme says otherwise."""
    relation = relation_between(session, caller_id, provider_id)
    return relation is not None and relation.share_bp >= LEAST_SHARE_BP


def holders_above(session: Session, *parties: Party) -> dict[str, Party]:
    """The declarations of organisations that hold these, step by step, by credit code. What nobody has approved yet
    declares nothing: anybody may register under another's code."""
    known: dict[str, Party] = {}
    wanted = {code for party in parties for code in party.holders()}
    for _ in range(MAX_STEPS):
        wanted = {code for code in wanted if code not in known}
        if not wanted or len(known) >= MAX_NODES:
            break
        query = select(Organisation).where(
            col(Organisation.uscc).in_(sorted(wanted)[:MAX_NODES]),
            col(Organisation.status).in_(("approved", "suspended")),
        )
        found = {str(row.uscc): party_of(row) for row in session.exec(query)}
        known |= found
        wanted = {code for party in found.values() for code in party.holders()}
    return known
