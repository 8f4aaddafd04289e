"""The frozen document of a pack against its manifest and, line by line, against postings and usage.

It is read twice: a line is judged by what stands beside the lines, and that may follow them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from marketplace.integrity.judgements import Judgement
from marketplace.integrity.opened import Pack, key_of
from marketplace.integrity.verify_amounts import Check, usage_of, verify_amounts
from marketplace.integrity.verify_filings import verify_filings
from marketplace.integrity.verify_invoices import take_invoices, verify_invoices
from marketplace.integrity.verify_times import Period, verify_times

FORMATS = ("algomart-claim/1", "algomart-claim/2")  # 1: lines without redeem-by day, nor whether invoices are asked for
_SAID = {  # what a judgement needs of a line
    Judgement.FILINGS: "filings",
    Judgement.REDEEM_BY: "redeem_by",
    Judgement.INVOICE_AMOUNTS: "invoices",
    Judgement.INVOICE_COVER: "invoices_required",
}


@dataclass
class Claimed:
    """What the lines that stand come to, in fen and in numbers; `unsaid`: what some line does not say enough for."""

    fen: int = 0
    lines: int = 0
    unfiled: int = 0  # subsidised records of which the filing was not recorded
    earlier: int = 0  # records older than the period
    later: int = 0  # records later than it
    invoices: int = 0
    programme: str = ""
    frozen_at_ms: int = 0
    unsaid: set[Judgement] = field(default_factory=set)


def verify_claim(pack: Pack, manifest: dict[str, Any], check: Check, *, is_marked: bool) -> Claimed:
    """`is_marked`: usage.csv says which records were corrected. Raises what `opened.UNREADABLE` lists."""
    head, found = _take_head(pack, check), Claimed()
    found.invoices = verify_invoices(pack, check)
    found.programme, found.frozen_at_ms = head["programme"]["id"], head["frozen_at_ms"]
    period, kept = Period.of(head), set(manifest["lines"])
    for line in _lines(pack):
        if line["line"] not in kept:
            continue
        found.fen, found.lines = found.fen + line["subsidy_fen"], found.lines + 1
        found.unsaid |= {judgement for judgement, key in _SAID.items() if key not in line}
        _verify_line(pack, line, check, is_marked=is_marked)
        found.unfiled += verify_filings(pack, line, check)
        earlier, later = verify_times(pack, line, period, check)
        found.earlier, found.later = found.earlier + earlier, found.later + later
    known = head["format"] == FORMATS[0] or not found.unsaid
    check(known, f"claim.json: a line of format {head['format']!r:.60} does not say all that it must")
    check(head["batch"] == manifest["batch"], "claim.json: of another batch")
    check(found.lines == len(kept), "manifest.json: names lines that were not frozen")
    whole = manifest["total_fen"]
    check(found.fen == whole, f"the lines are {found.fen} fen, the batch {whole}")
    _verify_nothing_over(pack, check)
    return found


def _take_head(pack: Pack, check: Check) -> dict[str, Any]:
    """What stands beside the lines; of these, all that were frozen, the sum and the invoices."""
    head, total = dict[str, Any](), 0
    stream = pack.json("claim.json")
    for key in stream.keys():  # noqa: SIM118  (a stream, no dict)
        if key in head:
            raise ValueError(f"claim.json: {key} stands twice")
        head[key] = None if key == "lines" else stream.value()
        for line in stream.items() if key == "lines" else ():
            total += line["subsidy_fen"]
            take_invoices(pack, line, check)
    stream.finish()
    check("lines" in head, "claim.json: has no lines")
    check(head["format"] in FORMATS, f"claim.json: format {head['format']!r:.60}, expected one of {FORMATS}")
    check(total == head["total_fen"], f"claim.json: its lines are {total} fen, it says {head['total_fen']}")
    return head


def _lines(pack: Pack) -> Iterator[dict[str, Any]]:
    stream = pack.json("claim.json")
    for key in stream.keys():  # noqa: SIM118  (a stream, no dict)
        if key == "lines":
            yield from stream.items()
        else:
            stream.value()


def _verify_nothing_over(pack: Pack, check: Check) -> None:
    (over,) = pack.tables.execute("SELECT COUNT(*) FROM leaf WHERE line IS NULL").fetchone()
    check(not over, f"transfers.jsonl: {over} transfers that no line claims")
    of_none = "SELECT COUNT(*) FROM usage WHERE transfer NOT IN (SELECT transfer FROM leaf WHERE line IS NOT NULL)"
    (over,) = pack.tables.execute(of_none).fetchone()
    check(not over, f"usage.csv: {over} records of transfers that no line claims")


def _verify_line(pack: Pack, line: dict[str, Any], check: Check, *, is_marked: bool) -> None:
    """Document against postings, postings against usage."""
    name = str(line["line"])
    for part in ("gross_fen", "subsidy_fen"):
        added = sum(each[part] for each in line["transfers"])
        check(added == line[part], f"{name}: its transfers' {part} are {added}, the line says {line[part]}")
    check(line["subsidy_fen"] > 0, f"{name}: nothing is claimed")
    for each in line["transfers"]:
        transfer = key_of(each["id"])
        found = pack.tables.execute("SELECT leaf, line FROM leaf WHERE transfer = ?", (transfer,)).fetchone()
        leaf, claimed_by = found or (None, None)
        check(claimed_by is None, f"{name}: a transfer is claimed twice")
        pack.tables.execute("UPDATE leaf SET line = ? WHERE transfer = ?", (name, transfer))
        _verify_transfer(name, line["reservation"], each, leaf, check)
    used = usage_of(pack, name)
    same = (used.records, used.sha256) == (line["usage_count"], line["usage_sha256"])
    check(same, f"{name}: its usage records are not those that were frozen")
    verify_amounts(line, used, check, is_marked=is_marked)


def _verify_transfer(line: str, reservation: str, told: dict[str, Any], leaf: bytes | None, check: Check) -> None:
    if leaf is None:
        check(False, f"{line}: transfer {told['id']} is missing")
        return
    posting = json.loads(leaf)
    where = f"{line}, transfer {told['id']}"
    same = (posting["kind"], posting["event"], posting["occurred_at_ms"])
    check(same == (told["kind"], told["event"], told["occurred_at_ms"]), f"{where}: another event was posted")
    sums: dict[str, int] = defaultdict(int)
    for account, fen in posting["entries"]:
        sums[account[0]] += fen
    check(not any(sums.values()), f"{where}: its entries do not sum to zero")
    used = sum(fen for account, fen in posting["entries"] if account == f"Q.used[{reservation}]")
    gross = -sum(fen for account, fen in posting["entries"] if _is_gross(account))
    check(used == told["subsidy_fen"], f"{where}: {used} fen of entitlement, not {told['subsidy_fen']}")
    check(gross == told["gross_fen"], f"{where}: {gross} fen were charged, not {told['gross_fen']}")


def _is_gross(account: str) -> bool:
    """Where the gross of a charge goes: to the provider, and in it fee and VAT."""
    return account.startswith("M.pay.provider[") or account in ("M.fee", "M.vat")
