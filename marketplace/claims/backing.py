"""What of which invoice backs which claimed line: an invoice never backs more than it says, however often entered.

One invoice may be entered for several contracts of a provider; all entries of a number are one invoice, and one amount.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimLine, Invoice, InvoiceBacking


def decide_backing(needed_fen: int, free: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """[(invoice, fen)] that back an amount, in the order given; together less than needed where there is too little."""
    taken = []
    for invoice, fen in free:
        part = min(needed_fen, fen)
        if part > 0:
            taken.append((invoice, part))
            needed_fen -= part
    return taken


@dataclass(slots=True)
class Plan:
    """What a claim that is being put together would take of invoices: number and provider → fen."""

    taken: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def room(self, session: Session, subscription_id: str) -> int:
        """Fen that the contract's invoices have left."""
        return sum(max(0, fen) for _, fen in self._left(session, subscription_id))

    def take(self, session: Session, subscription_id: str, gross_fen: int) -> None:
        """At most what they have left."""
        left = self._left(session, subscription_id)
        numbers = {row.id: _number(row) for row, _ in left}
        for key, fen in decide_backing(gross_fen, [(row.id, fen) for row, fen in left]):
            self.taken[numbers[key]] += fen

    def _left(self, session: Session, subscription_id: str) -> list[tuple[Invoice, int]]:
        rows = invoices_of_contract(session, subscription_id)
        return [(row, free_of(session, row) - self.taken[_number(row)]) for row in rows]


def invoices_of_contract(session: Session, subscription_id: str) -> list[Invoice]:
    """Oldest day first; locked, with every other entry of the same invoices: two claims at once must not share one."""
    query = select(Invoice).where(Invoice.subscription_id == subscription_id)
    rows = list(session.exec(query.order_by(col(Invoice.issued_on), col(Invoice.id))))
    if not rows:
        return []
    same = select(Invoice.id).where(
        col(Invoice.number).in_({row.number for row in rows}),
        col(Invoice.provider_id).in_({row.provider_id for row in rows}),
    )
    session.exec(same.order_by(col(Invoice.id)).with_for_update()).all()
    return rows


def _number(invoice: Invoice) -> tuple[str, str]:
    return invoice.number, invoice.provider_id


def free_of(session: Session, invoice: Invoice) -> int:
    """What is left of an invoice over all contracts that it is entered for."""
    backed = (
        select(func.sum(InvoiceBacking.amount_fen))
        .join(Invoice, col(Invoice.id) == col(InvoiceBacking.invoice_id))
        .where(Invoice.number == invoice.number, Invoice.provider_id == invoice.provider_id)
    )
    return invoice.amount_fen - int(session.exec(backed).one() or 0)


def back_line(session: Session, line: ClaimLine) -> None:
    """Set aside of the contract's invoices what backs a line, as far as they go."""
    free = [(row.id, free_of(session, row)) for row in invoices_of_contract(session, line.subscription_id)]
    for invoice, fen in decide_backing(line.gross_fen, free):
        session.add(InvoiceBacking(invoice_id=invoice, line_id=line.id, amount_fen=fen))
    session.flush()


def free_line(session: Session, line: ClaimLine) -> None:
    """A line that comes back leaves its invoices to others."""
    for row in session.exec(select(InvoiceBacking).where(InvoiceBacking.line_id == line.id)):
        session.delete(row)
    session.flush()


def backing_of_line(session: Session, line_id: str) -> list[dict[str, Any]]:
    """[{invoice, number, issued_on, amount_fen, sha256, backs_fen}], oldest day first."""
    query = (
        select(Invoice, InvoiceBacking.amount_fen)
        .join(InvoiceBacking, col(InvoiceBacking.invoice_id) == col(Invoice.id))
        .where(InvoiceBacking.line_id == line_id)
        .order_by(col(Invoice.issued_on), col(Invoice.id))
    )
    return [
        {
            "invoice": row.id,
            "number": row.number,
            "issued_on": row.issued_on,
            "amount_fen": row.amount_fen,
            "sha256": row.sha256,
            "backs_fen": fen,
        }
        for row, fen in session.exec(query)
    ]


def lines_of_invoices(session: Session, invoice_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Invoice → [{line, fen}] that it backs."""
    found: dict[str, list[dict[str, Any]]] = {each: [] for each in invoice_ids}
    query = select(InvoiceBacking).where(col(InvoiceBacking.invoice_id).in_(invoice_ids))
    for row in session.exec(query.order_by(col(InvoiceBacking.line_id))):
        found[row.invoice_id].append({"line": row.line_id, "fen": row.amount_fen})
    return found
