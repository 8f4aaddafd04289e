"""Account codes, in one place. Ledger Q holds entitlement, ledger M money; every amount is integer fen.

Signs: a Q balance is what the account holds (only `Q.auth`, the source of all entitlement, goes below zero); in M a
debit is positive and a credit negative. See ../shared/design/vouchers.md, "Postings".
"""

from __future__ import annotations

FEE = "M.fee"
VAT = "M.vat"
BANK = "M.bank"


def auth(programme: str) -> str:
    """Where a programme's entitlement comes from; the one Q account without a floor."""
    return f"Q.auth[{programme}]"


def unissued(programme: str) -> str:
    return f"Q.unissued[{programme}]"


def available(voucher: str) -> str:
    return f"Q.avail[{voucher}]"


def reserved(reservation: str) -> str:
    return f"Q.resv[{reservation}]"


def leased(lease: str) -> str:
    return f"Q.lease[{lease}]"


def used(reservation: str) -> str:
    return f"Q.used[{reservation}]"


def batched(batch: str) -> str:
    return f"Q.batch[{batch}]"


def paid(programme: str) -> str:
    return f"Q.paid[{programme}]"


def clawed_back(batch: str) -> str:
    return f"Q.claw[{batch}]"


def receivable_enterprise(organisation: str) -> str:
    return f"M.recv.ent[{organisation}]"


def receivable_government(programme: str) -> str:
    return f"M.recv.gov[{programme}]"


def receivable_clawback(organisation: str) -> str:
    """What an enterprise owes back of what was paid for it."""
    return f"M.recv.claw[{organisation}]"


def payable_provider(organisation: str) -> str:
    return f"M.pay.provider[{organisation}]"


def cap_enterprise(code: str, organisation: str, period: str) -> str:
    """By the programme's code, so that it counts over all versions."""
    return f"C.ent[{code},{organisation},{period}]"


def cap_contract(subscription: str) -> str:
    return f"C.contract[{subscription}]"


def cap_pool(code: str, tranche: str) -> str:
    """By the programme's code, so that it counts over all versions."""
    return f"C.pool[{code},{tranche}]"


def caps_of_pool(code: str) -> str:
    """What every `cap_pool` of that code begins with."""
    return f"C.pool[{code},"


def ledger_of(code: str) -> str:
    """`Q` or `M`; `ValueError` for anything else."""
    if code[:2] not in ("Q.", "M."):
        raise ValueError(f"not a ledger account: {code!r}")
    return code[0]


def has_floor(code: str) -> bool:
    """Whether the account may never go below zero: all of Q but its source. Money accounts take either sign."""
    return code.startswith("Q.") and not code.startswith("Q.auth[")
