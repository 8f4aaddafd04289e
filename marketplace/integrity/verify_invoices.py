"""The invoices in a frozen document: what backs each line, and that none backs more than it says. Amounts are fen.

Lines of one document were frozen together, those too that came back since: all of them are counted. One invoice may be
entered for several contracts of a provider; all entries of its number are one invoice.
"""

from __future__ import annotations

from typing import Any

from marketplace.integrity.opened import Pack
from marketplace.integrity.verify_amounts import Check

_INSERT = "INSERT OR IGNORE INTO invoice VALUES (?, ?, ?, ?, ?, ?, ?)"
_OVER = (
    "SELECT number, MIN(amount), SUM(backs) FROM invoice GROUP BY provider, number HAVING SUM(backs) > MIN(amount) "
    "ORDER BY provider, number"
)
_DIFFERING = (
    "SELECT number FROM invoice GROUP BY provider, number "
    "HAVING COUNT(DISTINCT amount) + COUNT(DISTINCT issued_on) > 2 "
    "UNION SELECT id FROM invoice GROUP BY id HAVING COUNT(DISTINCT number) + COUNT(DISTINCT provider) > 2"
)


def take_invoices(pack: Pack, line: dict[str, Any], check: Check) -> None:
    """Those of one line into their table, and whether they back as much as they must. `ValueError`: an amount is none.

    Where the programme asks for invoices they cover the gross; where it does not, they back at most that. A document
    from before that was said (`invoices_required`) is held to the latter.
    """
    name, backed = str(line["line"]), 0
    for each in line.get("invoices", ()):
        amount, backs = _fen(each["amount_fen"]), _fen(each["backs_fen"])
        invoice, number = str(each["invoice"]), str(each["number"])
        row = (name, invoice, number, str(line["provider"]["id"]), amount, str(each["issued_on"]), backs)
        check(pack.tables.execute(_INSERT, row).rowcount == 1, f"{name}: names invoice {number:.60} twice")
        check(backs > 0, f"{name}: invoice {number:.60} backs {backs} fen of it")
        backed += backs
    gross = _fen(line["gross_fen"])
    if line.get("invoices_required"):
        check(backed == gross, f"{name}: its invoices back {backed} fen, its gross is {gross}")
    check(backed <= gross, f"{name}: its invoices back {backed} fen, more than its gross of {gross}")


def verify_invoices(pack: Pack, check: Check) -> int:
    """All lines' invoices together, once they are taken; answers how many there are."""
    for number, amount, backs in pack.tables.execute(_OVER):
        check(False, f"claim.json: invoice {number:.60} of {amount} fen backs {backs}")
    for (number,) in pack.tables.execute(_DIFFERING):
        check(False, f"claim.json: invoice {number:.60} stands with two amounts, days or numbers")
    (count,) = pack.tables.execute("SELECT COUNT(DISTINCT provider || ' ' || number) FROM invoice").fetchone()
    return int(count)


def _fen(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r:.80} is no amount in fen")
    return value
