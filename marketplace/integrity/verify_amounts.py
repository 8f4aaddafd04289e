"""What a line claims against the usage under it: charges, what corrections took back of them, and what is left.

Whole fen are cut from a running total, so each transfer may be off from its records by what is less than a fen. Where
a line's charges were posted one after the other that cancels out, but a pack cannot tell: others may have come between
them, of another day or in another line. What a charge has over its own share came from before it, so only charges with
a subsidy count towards what the share may be off by; and no charge has more subsidy than gross.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from marketplace.integrity.opened import Pack

MICRO = 1_000_000
Check = Callable[[bool, str], None]  # (whether it holds, what is wrong where not)


@dataclass(slots=True)
class Used:
    """Micro-fen of the usage that a line's transfers carry. `eligible`: the part that a voucher pays a share of.
    `corrected`: what of it was taken back; `idle`: what of that with no transfer, being less than a fen."""

    records: int = 0
    sha256: str = ""
    micro: int = 0
    eligible: int = 0
    corrected: int = 0
    corrected_eligible: int = 0
    corrected_records: int = 0
    idle: int = 0
    idle_eligible: int = 0
    taken: dict[str, tuple[str, int]] = field(default_factory=dict)  # P13 → the record it takes back, its micro-fen
    wrong: list[str] = field(default_factory=list)  # records whose marks cannot be

    def add(self, usage: str, micro: int, is_eligible: bool, correction: str, taken_by: str) -> None:
        self.records, self.micro = self.records + 1, self.micro + micro
        self.eligible += micro if is_eligible else 0
        if not correction:
            if taken_by:
                self.wrong.append(usage)
            return
        self.corrected_records += 1
        self.corrected += micro
        self.corrected_eligible += micro if is_eligible else 0
        if not taken_by:
            self.idle += micro
            self.idle_eligible += micro if is_eligible else 0
        if taken_by in self.taken or (not taken_by and micro >= MICRO):
            self.wrong.append(usage)
        elif taken_by:
            self.taken[taken_by] = (usage, micro)


def usage_of(pack: Pack, line: str) -> Used:
    used, digest = Used(), hashlib.sha256()
    query = (
        "SELECT usage_id, amount_micro, lease_kind, correction, correction_transfer FROM leaf "
        "JOIN usage USING (transfer) WHERE line = ? ORDER BY usage_id"
    )
    for usage, amount, kind, correction, taken_by in pack.tables.execute(query, (line,)):
        digest.update(f"{usage}\t{amount}\n".encode())
        used.add(usage, int(amount), kind == "subsidised", correction, taken_by)
    used.sha256 = digest.hexdigest()
    return used


def verify_amounts(line: dict[str, Any], used: Used, check: Check, *, is_marked: bool) -> None:
    """`is_marked`: the pack says which records were corrected. Where it does not (formats before 3), charges are held
    against all records, and corrections only have to take something back."""
    charges = [each for each in line["transfers"] if each["kind"] == "P5"]
    taken = [each for each in line["transfers"] if each["kind"] == "P13"]
    name = str(line["line"])
    check(len(charges) + len(taken) == len(line["transfers"]), f"{name}: claims what is no charge and no correction")
    for each in charges:
        within = 0 <= each["subsidy_fen"] <= each["gross_fen"]
        check(within, f"{name}: charge {each['id']} is {each['gross_fen']} fen, of it {each['subsidy_fen']} subsidy")
    for each in taken:
        back = each["gross_fen"] <= 0 and each["subsidy_fen"] <= 0
        check(back, f"{name}: correction {each['id']} takes nothing back")
    elsewhere = line.get("corrections", 0) - used.corrected_records
    known = elsewhere >= 0 or "corrections" not in line
    check(
        known, f"{name}: {used.corrected_records} records were corrected, the document knows {line.get('corrections')}"
    )
    waits = MICRO * max(0, elsewhere)
    _verify_charges(line, charges, used, used.corrected if is_marked else used.micro if taken else 0, waits, check)
    if is_marked and (taken or used.corrected or used.wrong):
        own = _verify_marks(name, taken, used, check)
        _verify_left(line, [*charges, *own], used, waits, check)


def _verify_charges(
    line: dict[str, Any], charges: list[dict[str, Any]], used: Used, less: int, waits: int, check: Check
) -> None:
    """Gross and share of the charges against all their usage. They may be `less`: a record that was taken back before
    it was charged is carried by a charge that it is not in. `waits`: for each record under the same reservation that
    was taken back of another line's charge, up to a fen more than one may have waited."""
    gross, subsidy = _sums(charges)
    slack = MICRO * len(charges)
    holds = -slack - less - waits < gross * MICRO - used.micro < slack
    check(holds, f"{line['line']}: gross {gross} fen, its usage comes to {used.micro} micro-fen")
    _verify_share(line, subsidy, used.eligible, charges, waits, check)


def _verify_marks(name: str, taken: list[dict[str, Any]], used: Used, check: Check) -> list[dict[str, Any]]:
    """Each corrected record with its correction, one to one; answers the corrections of records that are here.

    A correction of a record that is not here (its charge had no subsidy, or stands in another claim) only lowers what
    is claimed. Which those are is in the frozen document (`reverses` 0), so that no mark can be taken away.
    """
    for usage in used.wrong:
        check(False, f"{name}: {usage} is marked as corrected as no record can be")
    own = [each for each in taken if str(each["id"]) in used.taken]
    for each in taken:
        if each.get("reverses"):
            marked = used.taken.get(str(each["id"]), ("", 0))[0] == each["usage_id"]
            check(marked, f"{name}: {each['usage_id']} is not marked with its correction {each['id']}")
    missing = set(used.taken) - {str(each["id"]) for each in own}
    for transfer in sorted(missing):
        check(False, f"{name}: {used.taken[transfer][0]} was corrected by transfer {transfer}, which is not taken off")
    for each in own:
        usage, micro = used.taken[str(each["id"])]
        near = abs(-each["gross_fen"] * MICRO - micro) < MICRO
        check(
            near, f"{name}: correction {each['id']} takes back {-each['gross_fen']} fen of {usage}, {micro} micro-fen"
        )
    return own


def _verify_left(line: dict[str, Any], transfers: list[dict[str, Any]], used: Used, waits: int, check: Check) -> None:
    """What is left of gross and share against the records that stand."""
    gross, subsidy = _sums(transfers)
    slack, standing = MICRO * len(transfers), used.micro - used.corrected
    holds = -slack - used.corrected - waits < gross * MICRO - standing < slack + used.idle
    check(holds, f"{line['line']}: {gross} fen are left, the usage that stands comes to {standing} micro-fen")
    eligible = used.eligible - used.corrected_eligible + used.idle_eligible
    _verify_share(line, subsidy, eligible, transfers, waits, check)


def _verify_share(
    line: dict[str, Any], subsidy_fen: int, eligible: int, transfers: list[dict[str, Any]], waits: int, check: Check
) -> None:
    num, den = line["ratio"]
    off = 1 + sum(1 for each in transfers if each["kind"] == "P13" or each["subsidy_fen"])
    most = eligible * num // den + MICRO * off + waits
    check(subsidy_fen * MICRO < most, f"{line['line']}: more than {num}/{den} of its usage is claimed")


def _sums(transfers: list[dict[str, Any]]) -> tuple[int, int]:
    return sum(each["gross_fen"] for each in transfers), sum(each["subsidy_fen"] for each in transfers)
