"""One finding as a signal gives it, and the typed rows that signals look at; nothing here reads clock or database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from marketplace.vouchers.relations import Party
from marketplace.vouchers.signals import Code

Severity = Literal["low", "medium", "high"]
SHOWN = 20  # ids, days or steps of one kind that a finding carries as evidence; it says how many there are


@dataclass(frozen=True, slots=True)
class Sample:
    """Which usage records are the evidence: of a contract, and of a key and day or of one request."""

    contract: str
    key: str = ""
    day: str = ""
    model: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """`keys`: what it is the same by, so that tomorrow's run finds the same row again. `amount_fen`: the gross that it
    is about (a burst: the voucher's share). `evidence` is JSON, enough to check by hand, bounded by `SHOWN`."""

    code: Code
    severity: Severity
    programme: str  # "": of every programme
    organisation: str
    provider: str
    keys: tuple[str, ...]
    contracts: tuple[str, ...]
    amount_fen: int
    zh: str
    en: str
    evidence: dict[str, Any]
    sample: Sample | None = None

    @property
    def id(self) -> str:
        """Stable: of code, programme and keys, whatever the evidence has grown to."""
        text = json.dumps([self.code, self.programme, *self.keys], ensure_ascii=False)
        return f"fnd_{hashlib.sha256(text.encode()).hexdigest()[:26]}"


@dataclass(frozen=True, slots=True)
class Contract:
    """Whose contract it is, with whom. `spent_fen`: gross settled under the programme; `last_use_day` "" for none."""

    id: str
    organisation: str
    provider: str
    contract_fen: int = 0
    spent_fen: int = 0
    last_use_day: str = ""


@dataclass(frozen=True, slots=True)
class Spacing:
    """The calls of one key under one contract on one day (ISO), with the sums of their gaps and of the gaps squared."""

    contract: Contract
    key: str
    day: str
    calls: int
    gaps_ms: int
    gaps_ms2: int
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """Calls under one contract with the same request to the same model, of `of_calls` in all."""

    contract: Contract
    model: str
    digest: str
    calls: int
    of_calls: int
    amount_micro: int
    first_day: str
    last_day: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one voucher paid in all and in its last days, from `late_from` (ISO) to its use-by day."""

    voucher: str
    organisation: str
    contracts: tuple[str, ...]
    issued_day: str
    use_by: str
    late_from: str
    valid_days: int
    paid_fen: int
    late_fen: int
    charges: tuple[int, ...]
    charge_count: int


@dataclass(frozen=True, slots=True)
class Declared:
    """An organisation's declaration. `name_en`: as `name` where there is none. `domains`: of e-mail addresses."""

    party: Party
    name: str
    name_en: str
    address: str = ""
    phone: str = ""
    domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Bill:
    """An invoice as entered. `files`: the SHA-256 of what was handed in with it."""

    id: str
    number: str
    contract: str
    organisation: str
    provider: str
    amount_fen: int
    files: tuple[str, ...] = ()


def bounded(items: Iterable[Any]) -> list[Any]:
    """The first `SHOWN` of them, in their order."""
    return list(items)[:SHOWN]


def yuan(fen: int) -> str:
    return f"{fen / 100:,.2f}"
