"""P1–P8 as pure functions: facts in, a `Posting` that sums to zero by construction out. P9–P14: `claim_postings`.

Each event key is unique per event: where an event can repeat (P4, P6, P7, P8) it carries the cumulative amount after
it, which only ever grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marketplace.ledger import accounts
from marketplace.ledger.posting import Entry, Posting

MODES = ("reimburse", "deduct")


@dataclass(frozen=True, slots=True)
class Terms:
    """How gross is shared: the market's fee and the VAT in it, in basis points of gross (10,000 = all of it)."""

    fee_bp: int = 0
    vat_bp: int = 0

    def __post_init__(self) -> None:
        if self.fee_bp < 0 or self.vat_bp < 0 or self.fee_bp + self.vat_bp > 10_000:
            raise ValueError(f"fee and VAT take 0 to 10000 basis points together, not {self.fee_bp} + {self.vat_bp}")


def move(source: str, target: str, fen: int) -> tuple[Entry, Entry]:
    """`fen` > 0 out of one account into another."""
    if fen <= 0:
        raise ValueError(f"a movement is positive, not {fen} fen from {source} to {target}")
    return Entry(source, -fen), Entry(target, fen)


def p1_tranche_approved(programme: str, tranche: str, fen: int, at_ms: int) -> Posting:
    entries = move(accounts.auth(programme), accounts.unissued(programme), fen)
    return Posting("P1", f"P1:{programme}:{tranche}", entries, at_ms)


def p1_withdrawn(programme: str, successor: str, fen: int, at_ms: int) -> Posting:
    """What a version did not issue goes back where it came from, once another version of its code authorises it."""
    entries = move(accounts.unissued(programme), accounts.auth(programme), fen)
    return Posting("P1", f"P1:{programme}:withdrawn:{successor}", entries, at_ms)


def p2_voucher_issued(programme: str, voucher: str, fen: int, at_ms: int) -> Posting:
    entries = move(accounts.unissued(programme), accounts.available(voucher), fen)
    return Posting("P2", f"P2:{voucher}", entries, at_ms)


def p3_reserved(voucher: str, reservation: str, fen: int, at_ms: int) -> Posting:
    entries = move(accounts.available(voucher), accounts.reserved(reservation), fen)
    return Posting("P3", f"P3:{reservation}", entries, at_ms)


def p4_leased(reservation: str, lease: str, fen: int, granted_after_fen: int, at_ms: int) -> Posting:
    """`granted_after_fen`: all that the lease was ever granted, this grant included."""
    entries = move(accounts.reserved(reservation), accounts.leased(lease), fen)
    return Posting("P4", f"P4:{lease}:{granted_after_fen}", entries, at_ms)


def p5_used(
    *,
    event: str,
    enterprise: str,
    provider: str,
    gross_fen: int,
    posted_gross_fen: int,
    terms: Terms,
    occurred_at_ms: int,
    programme: str = "",
    reservation: str = "",
    mode: str = "reimburse",
    draws: Mapping[str, int] | None = None,
) -> Posting:
    """Usage of gross g, of which the voucher pays s = Σ `draws` (lease → fen; none for self-pay).

    Reimburse: the enterprise owes g now and claims s later. Deduct: it owes g - s and the government owes s.
    Fee and VAT are cut from the cumulative gross (`posted_gross_fen` stands already), so batching never changes them.
    """
    if mode not in MODES:
        raise ValueError(f"settlement mode {mode!r} is none of {MODES}")
    drawn = {lease: fen for lease, fen in sorted((draws or {}).items()) if fen}
    subsidy = sum(drawn.values())
    if gross_fen <= 0 or not 0 <= subsidy <= gross_fen or any(fen < 0 for fen in drawn.values()):
        raise ValueError(f"a charge needs gross > 0 and 0 <= subsidy <= gross, not {gross_fen} and {drawn}")
    entries = [Entry(accounts.leased(lease), -fen) for lease, fen in drawn.items()]
    if subsidy:
        entries.append(Entry(accounts.used(reservation), subsidy))
    own = gross_fen if mode == "reimburse" else gross_fen - subsidy
    fee = cumulative_share(posted_gross_fen, gross_fen, terms.fee_bp)
    vat = cumulative_share(posted_gross_fen, gross_fen, terms.vat_bp)
    money = (
        (accounts.receivable_enterprise(enterprise), own),
        (accounts.receivable_government(programme), gross_fen - own),
        (accounts.payable_provider(provider), -(gross_fen - fee - vat)),
        (accounts.FEE, -fee),
        (accounts.VAT, -vat),
    )
    entries.extend(Entry(account, fen) for account, fen in money if fen)
    return Posting("P5", f"P5:{event}", tuple(entries), occurred_at_ms)


def p6_sealed(reservation: str, lease: str, fen: int, returned_after_fen: int, at_ms: int) -> Posting:
    """`returned_after_fen`: all that the lease ever gave back, this included."""
    entries = move(accounts.leased(lease), accounts.reserved(reservation), fen)
    return Posting("P6", f"P6:{lease}:{returned_after_fen}", entries, at_ms)


def p6_written_off(
    reservation: str, lease: str, fen: int, returned_after_fen: int, write_off: str, at_ms: int
) -> Posting:
    """As P6, of a lease whose journal is lost: its event says so, and the memo names the two persons' decision."""
    entries = move(accounts.leased(lease), accounts.reserved(reservation), fen)
    event = f"P6:{lease}:{returned_after_fen}:written-off"
    return Posting("P6", event, entries, at_ms, memo=f"write-off {write_off}")


def p4_restored(reservation: str, lease: str, fen: int, granted_after_fen: int, write_off: str, at_ms: int) -> Posting:
    """As P4, to a lease that was written off and whose journal has turned up."""
    entries = move(accounts.reserved(reservation), accounts.leased(lease), fen)
    return Posting("P4", f"P4:{lease}:{granted_after_fen}", entries, at_ms, memo=f"late journal of {write_off}")


def p7_contract_ended(voucher: str, reservation: str, fen: int, released_after_fen: int, at_ms: int) -> Posting:
    """`released_after_fen`: all that the reservation ever gave back to its voucher, this included."""
    entries = move(accounts.reserved(reservation), accounts.available(voucher), fen)
    return Posting("P7", f"P7:{reservation}:{released_after_fen}", entries, at_ms)


def p8_lapsed(
    programme: str,
    voucher: str,
    available_fen: int,
    idle_fen: Mapping[str, int],
    returned_after_fen: int,
    at_ms: int,
) -> Posting:
    """What is left of a voucher past its use-by goes back to the pool: its own balance and idle reservations'
    (`idle_fen`: reservation → fen). `returned_after_fen`: all that the voucher ever gave back, this included."""
    sources = {accounts.available(voucher): available_fen} | {accounts.reserved(r): fen for r, fen in idle_fen.items()}
    entries = [entry for code, fen in sources.items() if fen for entry in move(code, accounts.unissued(programme), fen)]
    return Posting("P8", f"P8:{voucher}:{returned_after_fen}", tuple(entries), at_ms)


def cumulative_share(before_fen: int, added_fen: int, basis_points: int) -> int:
    """What `added_fen` (negative: taken back) adds to the share that is cut from the running total."""
    return (before_fen + added_fen) * basis_points // 10_000 - before_fen * basis_points // 10_000
