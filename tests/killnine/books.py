"""The books after the kills, read twice: from the operator's API, and from the database's own rows in plain SQL.

Nothing here imports the ledger: sums are done again from the usage records and the ledger's entries.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from tests.killnine.town import ok

_NEVER_ISSUED = ("proposed", "declined", "withdrawn")

MICRO = 1_000_000
PAGE = 1_000


def reading(address: str) -> contextlib.closing[sqlite3.Connection]:
    """A connection that can only read, closed at the end of its block."""
    return contextlib.closing(sqlite3.connect(address, uri=True))


def posted_usage(operator: httpx.Client, key_id: str) -> dict[str, int]:
    """Usage id → micro-fen of one key, as the operator's API lists it; no usage id twice.

    Where something was posted between two pages, rows have moved from one to the next: then it is read again.
    """
    while True:
        found: list[dict[str, Any]] = []
        totals: set[int] = set()
        more, page = True, 1
        while more:
            query: dict[str, str | int] = {"key_id": key_id, "page": page, "page_size": PAGE}
            answer = ok(operator.get("/api/v1/usage", params=query))
            found += answer["items"]
            totals.add(answer["total"])
            more, page = len(answer["items"]) == PAGE, page + 1
        if len(totals) == 1:
            break
    posted = {row["usage_id"]: row["amount_micro"] for row in found}
    assert len(posted) == len(found), f"posted twice: {len(found) - len(posted)} of key {key_id}"
    assert all(row["status"] == "ok" for row in found), [row for row in found if row["status"] != "ok"][:3]
    return posted


def faults_of_api(operator: httpx.Client) -> list[str]:
    """What the operator's own pages say is wrong; empty where the pool is conserved and the ledger balances."""
    faults = []
    if not ok(operator.get("/api/v1/ledger/trial-balance"))["balanced"]:
        faults.append("the trial balance does not balance")
    rebuilt = ok(operator.get("/api/v1/ledger/rebuild"))
    if not rebuilt["sound"]:
        faults.append(f"replaying the entries gives other balances: {rebuilt['wrong']} {rebuilt['lopsided_transfers']}")
    for row in ok(operator.get("/api/v1/pool"))["items"]:
        parts = sum(row[f"{part}_fen"] for part in ("unissued", "available", "reserved", "leased", "used"))
        if parts != row["authorised_fen"] or not row["conserved"]:
            faults.append(f"the pool of {row['programme']} is not conserved: {row}")
    for row in ok(operator.get("/api/v1/vouchers"))["items"]:
        parts = sum(row[f"{part}_fen"] for part in ("available", "reserved", "leased", "used", "returned"))
        issued = 0 if row["state"] in _NEVER_ISSUED else row["face_fen"]
        if parts != issued or row["remaining_fen"] + row["used_fen"] + row["returned_fen"] != issued:
            faults.append(f"voucher {row['id']}: issued is not remaining + reserved + charged: {row}")
    return faults


def faults_of_database(path: Path) -> list[str]:
    """What the rows themselves say is wrong; works on a running and on a stopped market."""
    with reading(f"file:{path}?mode=ro") as database:
        checks = (_lopsided, _balances, _vouchers, _reservations, _own_cost, _postings, _publications)
        return [fault for check in checks for fault in check(database)]


def faults_of_leases(path: Path) -> list[str]:
    """With every node stopped, only the fen that a fraction still fills may lie with leases: none is stranded."""
    query = "SELECT id, ratio_num, ratio_den, posted_subsidy_fen FROM reservation"
    faults = []
    with reading(f"file:{path}?mode=ro") as database:
        for reservation, num, den, subsidy in database.execute(query).fetchall():
            micro = _one(database, _SUBSIDISED, reservation)
            leases = "SELECT 'Q.lease[' || id || ']' FROM lease WHERE reservation_id = ?"
            left = _one(database, f"SELECT {_SUM} WHERE account IN ({leases})", reservation)
            if left != -(-micro * num // (den * MICRO)) - subsidy:
                faults.append(f"{reservation}: {left} fen lie with nodes that have all stopped")
    return faults


_SUM = "COALESCE(SUM(amount_fen), 0) FROM ledger_entry"
_SUBSIDISED = (
    "SELECT COALESCE(SUM(amount_micro), 0) FROM usage"
    " WHERE reservation_id = ? AND lease_kind = 'subsidised' AND status = 'ok'"
)


def _one(database: sqlite3.Connection, query: str, *values: Any) -> Any:
    return database.execute(query, values).fetchone()[0]


def _lopsided(database: sqlite3.Connection) -> Iterable[str]:
    rows = database.execute(
        "SELECT transfer_id, SUBSTR(account, 1, 1), SUM(amount_fen) FROM ledger_entry"
        " GROUP BY 1, 2 HAVING SUM(amount_fen) <> 0"
    )
    return [f"transfer {transfer} is off by {amount} fen in {ledger}" for transfer, ledger, amount in rows]


def _balances(database: sqlite3.Connection) -> Iterable[str]:
    rows = database.execute(
        "SELECT code, balance_fen, floor_zero, (SELECT "
        + _SUM
        + " WHERE account = code) AS entries FROM ledger_account"
    )
    for code, balance, floor_zero, entries in rows:
        if balance != entries:
            yield f"{code} keeps {balance} fen, its entries come to {entries}"
        if floor_zero and balance < 0:
            yield f"{code} is below zero: {balance}"


def _vouchers(database: sqlite3.Connection) -> Iterable[str]:
    """issued = available + reserved + with nodes + charged + gone back, from the entries alone."""
    for voucher, face, returned in database.execute("SELECT id, face_fen, returned_fen FROM voucher").fetchall():
        accounts = [f"Q.avail[{voucher}]"]
        for (reservation,) in database.execute("SELECT id FROM reservation WHERE voucher_id = ?", (voucher,)):
            accounts += [f"Q.resv[{reservation}]", f"Q.used[{reservation}]"]
            leases = database.execute("SELECT id FROM lease WHERE reservation_id = ?", (reservation,))
            accounts += [f"Q.lease[{lease}]" for (lease,) in leases]
        marks = ",".join("?" * len(accounts))
        held = _one(database, f"SELECT {_SUM} WHERE account IN ({marks})", *accounts)
        if held + returned != face:
            yield f"voucher {voucher} of {face} fen: {held} fen found, {returned} returned"


def _reservations(database: sqlite3.Connection) -> Iterable[str]:
    """Every fen posted is the floor of the micro-fen used; the voucher's part is never over its ratio."""
    query = "SELECT id, ratio_num, ratio_den, posted_gross_fen, posted_subsidy_fen FROM reservation"
    for reservation, num, den, gross, subsidy in database.execute(query).fetchall():
        micro = _one(database, _SUBSIDISED, reservation)
        charged = _one(database, f"SELECT {_SUM} WHERE account = ?", f"Q.used[{reservation}]")
        wanted = (micro // MICRO, micro * num // (den * MICRO))
        if (gross, subsidy) != wanted or charged != subsidy:
            yield f"{reservation}: {gross} and {subsidy} fen posted, {charged} in the ledger; usage says {wanted}"


def _own_cost(database: sqlite3.Connection) -> Iterable[str]:
    query = "SELECT subscription_id, SUM(posted_gross_fen) FROM self_pay_meter WHERE month = '' GROUP BY 1"
    for subscription, fen in database.execute(query).fetchall():
        micro = _one(
            database,
            "SELECT SUM(amount_micro) FROM usage WHERE subscription_id = ? AND lease_kind = 'self_pay'"
            " AND status = 'ok'",
            subscription,
        )
        if fen != micro // MICRO:
            yield f"{subscription}: {fen} fen of own cost posted, usage says {micro // MICRO}"


def _postings(database: sqlite3.Connection) -> Iterable[str]:
    """Each journal record once: usage ids are unique by key, node, epoch and seq must be too; none in quarantine."""
    twice = _one(database, "SELECT COUNT(*) - COUNT(DISTINCT node || ':' || epoch || ':' || seq) FROM usage")
    if twice:
        yield f"{twice} journal records are posted twice"
    quarantined = _one(database, "SELECT COUNT(*) FROM usage WHERE status <> 'ok'")
    if quarantined:
        yield f"{quarantined} usage records are not ok"


def _publications(database: sqlite3.Connection) -> Iterable[str]:
    rows = database.execute("SELECT id, step FROM publication WHERE step NOT IN ('done', 'failed')")
    return [f"publication {publication} stands at {step}" for publication, step in rows]


_LIVE = "current_stage <> 'Deleted_Internal'"  # MLflow keeps the row of what was deleted
_PAPERS = ("claim_batch", "invoice", "evidence_file")  # blobs that are no bundles


def half_published(home: Path, mlflow: Path | None = None) -> list[str]:
    """Versions and blobs that only one of the three stores knows, and versions still pending in MLflow. `mlflow`: its
    database, where that is not the market's own."""
    with reading(f"file:{home / 'market.db'}?mode=ro") as market:
        query = "SELECT l.name, v.number, v.blob FROM model_version v JOIN listing l ON l.id = v.listing_id"
        rows = market.execute(query).fetchall()
        papers = {sha256 for table in _PAPERS for (sha256,) in market.execute(f"SELECT sha256 FROM {table}")}
    with reading(f"file:{mlflow or home / 'mlflow.db'}?mode=ro") as registry:
        known = {(name.replace("--", "/"), int(number)) for name, number in
                 registry.execute(f"SELECT name, version FROM model_versions WHERE {_LIVE}")}  # fmt: skip
        tags = registry.execute(
            "SELECT name, version FROM model_versions JOIN model_version_tags USING (workspace, name, version)"
            f" WHERE key = 'algomart.pending' AND {_LIVE}"
        )
        faults = [f"pending in MLflow: {tag}" for tag in tags]
    shown = {(name, number) for name, number, _ in rows}
    faults += [f"in MLflow only: {each}" for each in known - shown]
    faults += [f"in the catalogue only: {each}" for each in shown - known]
    blobs = {path.stem for path in (home / "blobs").rglob("*") if path.is_file()}
    faults += [f"a blob of no version: {each}" for each in blobs - papers - {blob for _, _, blob in rows}]
    return faults + [f"a version without its blob: {each}" for each in {blob for _, _, blob in rows} - blobs]
