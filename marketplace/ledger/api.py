"""Routes of the ledger, for operators: trial balance, accounts, transfers, and the rebuild by replay."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from sqlmodel import col, func, select

from marketplace.access import Actor, market_of, require
from marketplace.db import reading
from marketplace.integrity.books import check_books, list_checks
from marketplace.integrity.days import check_days, list_days
from marketplace.ledger.posting import entries_of
from marketplace.ledger.rebuild import rebuild, trial_balance
from marketplace.ledger.tables import LedgerAccount, LedgerTransfer
from marketplace.market import Market
from model_store.errors import NotFound

router = APIRouter(prefix="/ledger", tags=["ledger"])
OPERATOR = require("operator", scope="admin")
PAGE = 200


@router.get("/trial-balance")
def get_trial_balance(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Balance and turnover by kind of account; `balanced` where each ledger sums to zero."""
    with reading(market.engine) as session:
        return trial_balance(session)


@router.get("/rebuild")
def get_rebuild(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Replay every entry and compare with the balances kept; `sound`, and the SHA-256 of both states."""
    with reading(market.engine) as session:
        rebuilt = rebuild(session)
        return {
            "sound": rebuilt.sound,
            "entries": rebuilt.entries,
            "accounts": len(rebuilt.balances),
            "sha256": rebuilt.sha256,
            "kept_sha256": rebuilt.kept_sha256,
            "wrong": [{"account": code, "kept_fen": a, "replayed_fen": b} for code, (a, b) in rebuilt.wrong.items()],
            "lopsided_transfers": list(rebuilt.lopsided),
        }


@router.get("/checks")
def list_ledger_checks(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The nightly checks, newest first: `sound`, both hashes, what differed (balances, caps, meters, charges)."""
    with reading(market.engine) as session:
        items = [row.model_dump() for row in list_checks(session)]
        return {"items": items, "total": len(items)}


@router.post("/checks", status_code=201)
def check_ledger(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Rebuild balances and caps, hold usage against charges, keep the result; tell all operators a difference."""
    return check_books(market.engine).model_dump()


@router.get("/days")
def get_days(
    check: bool = False, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """The Merkle root of each closed day, chained: keep the last chain elsewhere, and it proves all before it."""
    with reading(market.engine) as session:
        items = [row.model_dump() for row in list_days(session)]
        found = {"wrong": check_days(session)} if check else {}  # reads the whole ledger
        return {"items": items, "total": len(items), **found}


@router.get("/accounts")
def list_accounts(
    prefix: str = Query("", max_length=100),
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Accounts by the beginning of their code (`Q.avail`, `M.`), with balances in fen."""
    query = select(LedgerAccount)
    if prefix:
        query = query.where(col(LedgerAccount.code).startswith(prefix, autoescape=True))
    with reading(market.engine) as session:
        total = session.exec(select(func.count()).select_from(query.subquery())).one()
        rows = session.exec(query.order_by(LedgerAccount.code).limit(PAGE).offset((page - 1) * PAGE))
        items = [{"code": row.code, "ledger": row.ledger, "balance_fen": row.balance_fen} for row in rows]
        return {"items": items, "total": total}


@router.get("/transfers/{transfer_id}")
def get_transfer(
    transfer_id: int, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """One transfer with its entries."""
    with reading(market.engine) as session:
        row = session.get(LedgerTransfer, transfer_id)
        if row is None:
            raise NotFound(
                "TRANSFER_NOT_FOUND",
                zh=f"没有编号为 {transfer_id} 的入账",
                en=f"there is no transfer {transfer_id}",
                remedy_zh="请核对编号",
                remedy_en="check the number",
            )
        fields = ("id", "kind", "event_key", "occurred_at_ms", "posted_at_ms", "memo")
        entries = [{"account": each.account, "amount_fen": each.amount_fen} for each in entries_of(session, row)]
        return {name: getattr(row, name) for name in fields} | {"entries": entries}
