"""P9–P14 as pure functions: what is claimed, paid, sent back, corrected and clawed back. See `postings` for P1–P8.

The market keeps no public money. In mode deduct it is owed by the government what it did not charge the enterprise
(`M.recv.gov`), which the payment of a batch settles: into the market's own bank (`M.bank`) where the platform is paid,
and where the providers are, against what the market owed them (`M.pay.provider`). In mode reimburse the enterprise has
paid in full, the government pays it directly, and only entitlement moves.
"""

from __future__ import annotations

from collections.abc import Mapping

from marketplace.ledger import accounts
from marketplace.ledger.posting import Entry, Posting
from marketplace.ledger.postings import MODES, Terms, cumulative_share, move

PAYEES = ("enterprise", "provider", "platform")


def p9_frozen(batch: str, subsidy_fen: Mapping[str, int], at_ms: int) -> Posting:
    """`subsidy_fen`: reservation → fen claimed of what was used under it."""
    entries = [
        entry
        for reservation, fen in sorted(subsidy_fen.items())
        for entry in move(accounts.used(reservation), accounts.batched(batch), fen)
    ]
    return Posting("P9", f"P9:{batch}", tuple(entries), at_ms)


def p10_paid(batch: str, programme: str, subsidy_fen: Mapping[str, int], payee: str, at_ms: int) -> Posting:
    """`subsidy_fen`: provider → fen of its lines, all of which the government has paid to the `payee`.

    A provider that was paid directly holds fee and VAT too: the market owes it so much less of what enterprises pay;
    where that is not enough the provider owes the market the rest (a debit balance).
    """
    if payee not in PAYEES:
        raise ValueError(f"payee {payee!r} is none of {PAYEES}")
    entries = list(move(accounts.batched(batch), accounts.paid(programme), sum(subsidy_fen.values())))
    if payee != "enterprise":
        for provider, fen in sorted(subsidy_fen.items()):
            target = accounts.BANK if payee == "platform" else accounts.payable_provider(provider)
            entries += move(accounts.receivable_government(programme), target, fen)
    return Posting("P10", f"P10:{batch}", tuple(entries), at_ms)


def p11_returned(batch: str, line: str, reservation: str, fen: int, at_ms: int) -> Posting:
    """A line goes back to what was used; it may be claimed again."""
    return Posting("P11", f"P11:{line}", move(accounts.batched(batch), accounts.used(reservation), fen), at_ms)


def p12_rejected(batch: str, line: str, programme: str, enterprise: str, fen: int, mode: str, at_ms: int) -> Posting:
    """A line that nobody will pay: the entitlement goes back to the pool, and in mode deduct the enterprise owes it."""
    entries = list(move(accounts.batched(batch), accounts.unissued(programme), fen))
    if _check_mode(mode) == "deduct":
        entries += move(accounts.receivable_government(programme), accounts.receivable_enterprise(enterprise), fen)
    return Posting("P12", f"P12:{line}", tuple(entries), at_ms)


def p13_corrected(
    *,
    correction: str,
    enterprise: str,
    provider: str,
    gross_fen: int,
    subsidy_fen: int,
    posted_gross_fen: int,
    terms: Terms,
    at_ms: int,
    programme: str = "",
    reservation: str = "",
    lease: str = "",
    mode: str = "reimburse",
) -> Posting:
    """Take back `gross_fen` of the `posted_gross_fen` that stand, and the `subsidy_fen` in it (self-pay: none),
    which goes back to the `lease` it was used under: to the reservation only P6 brings it.

    Fee and VAT follow the running total, as they did when it grew; either amount may be zero, not both. Rounding may
    take a fen of subsidy without one of gross: then, in mode deduct, the enterprise owes it.
    """
    if gross_fen < 0 or subsidy_fen < 0 or not gross_fen + subsidy_fen:
        raise ValueError(f"a correction takes something back, not {gross_fen} and {subsidy_fen} fen")
    deducted = subsidy_fen if _check_mode(mode) == "deduct" else 0
    entries = list(move(accounts.used(reservation), accounts.leased(lease), subsidy_fen)) if subsidy_fen else []
    fee = -cumulative_share(posted_gross_fen, -gross_fen, terms.fee_bp)
    vat = -cumulative_share(posted_gross_fen, -gross_fen, terms.vat_bp)
    money = (
        (accounts.receivable_enterprise(enterprise), deducted - gross_fen),
        (accounts.receivable_government(programme), -deducted),
        (accounts.payable_provider(provider), gross_fen - fee - vat),
        (accounts.FEE, fee),
        (accounts.VAT, vat),
    )
    entries.extend(Entry(account, fen) for account, fen in money if fen)
    return Posting("P13", f"P13:{correction}", tuple(entries), at_ms)


def p14_clawed_back(clawback: str, batch: str, programme: str, enterprise: str, fen: int, at_ms: int) -> Posting:
    """What was paid without right: the enterprise owes it, and the market owes it on to the government."""
    entries = move(accounts.paid(programme), accounts.clawed_back(batch), fen)
    owed = move(accounts.receivable_government(programme), accounts.receivable_clawback(enterprise), fen)
    return Posting("P14", f"P14:{clawback}", (*entries, *owed), at_ms)


def p14_ended(clawback: str, programme: str, enterprise: str, fen: int, at_ms: int) -> Posting:
    """It was paid back and passed on, or written off by the government: nobody owes it any more."""
    entries = move(accounts.receivable_clawback(enterprise), accounts.receivable_government(programme), fen)
    return Posting("P14", f"P14:{clawback}:ended", entries, at_ms)


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"settlement mode {mode!r} is none of {MODES}")
    return mode
