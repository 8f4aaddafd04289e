"""Reports on the ledger: trial balance and returns to the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts


def _balance(facts: Facts) -> Iterator[Row]:
    """By kind of account, then each ledger's sum: zero where it balances."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    accounts: dict[str, set[str]] = defaultdict(set)
    for (_, account), (into, out) in facts.flows.items():
        kind = account.partition("[")[0]
        accounts[kind].add(account)
        for key in (kind, f"Σ{kind[0]}"):
            sums[key][0] += into
            sums[key][1] += out
    for key in sorted(sums, key=lambda each: (each.startswith("Σ"), each)):
        into, out = sums[key]
        total = key.startswith("Σ")
        yield (
            key,
            key[-1] if total else key[0],
            len(accounts[key]) or None,
            into,
            out,
            into - out,
            (into == out if total else None),
        )


TRIAL_BALANCE = Report(
    "trial-balance",
    "试算平衡与核对",
    "Trial balance and reconciliation",
    columns("""
account text 科目 | account
ledger text 账 | ledger
accounts integer 户数 | accounts
into_fen fen 借入 | into
out_fen fen 贷出 | out of
balance_fen fen 余额 | balance
balanced flag 平衡 | balanced
"""),
    _balance,
)


def _returns(facts: Facts) -> Iterator[Row]:
    for transfer, entries in facts.transfers("P8"):
        row = facts.vouchers.get(transfer.event_key.split(":")[1])
        if row is not None:
            fen = sum(entry.amount_fen for entry in entries if entry.account.startswith("Q.unissued["))
            yield (transfer.id, row.id, facts.programmes[row.programme_id].code, row.organisation_id,
                   facts.name(row.organisation_id), row.use_by, transfer.posted_at_ms, row.face_fen, fen)  # fmt: skip


RETURNS = Report(
    "expiry-returns",
    "到期与回池",
    "Expiry and return to the pool",
    columns("""
transfer integer 入账 | transfer
voucher text 券 | voucher
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
use_by day 使用截止 | use by
posted_at instant 入账时间 | posted at
face_fen fen 面值 | face value
returned_fen fen 回池 | returned
"""),
    _returns,
)
