"""Reports on the ledger: trial balance and returns to the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from marketplace.ledger.accounts import has_floor
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts

# class → its kinds of account; no class is called as a kind is
CLASSES = {
    "Q.source": ("Q.auth",),
    "Q.pool": ("Q.unissued",),
    "Q.vouchers": ("Q.avail", "Q.resv", "Q.lease"),
    "Q.consumed": ("Q.used",),
    "Q.claims": ("Q.batch", "Q.paid", "Q.claw"),
    "M.assets": ("M.bank", "M.recv.ent", "M.recv.gov", "M.recv.claw"),
    "M.liabilities": ("M.pay.provider", "M.fee", "M.vat"),
}
_CLASS_OF = {kind: name for name, kinds in CLASSES.items() for kind in kinds}


@dataclass(slots=True)
class Turnover:
    """Of an account kind, a class or a ledger, in fen."""

    opening: int = 0
    into: int = 0
    out: int = 0
    accounts: set[str] = field(default_factory=set)

    def cells(self, balanced: bool | None) -> Row:
        opening, into, out = self.opening, self.into, self.out
        return len(self.accounts), opening, into, out, into - out, opening + into - out, balanced


def _balance(facts: Facts) -> Iterator[Row]:
    """By kind of account, then by class, then each ledger's sum. A ledger balances where it opened and closed at zero
    and as much went in as out; a Q account but the source that stands below zero does not."""
    sums: dict[str, Turnover] = defaultdict(Turnover)
    below: set[str] = set()
    for account, (opening, into, out) in _movements(facts).items():
        kind = account.partition("[")[0]
        for key in (kind, _CLASS_OF[kind], f"Σ{kind[0]}"):
            found = sums[key]
            found.opening += opening
            found.into += into
            found.out += out
            found.accounts.add(account)
        if has_floor(account) and opening + into - out < 0:
            below.add(kind)
    for kind in sorted(key for key in sums if key in _CLASS_OF):
        yield "account", kind, kind[0], _CLASS_OF[kind], *sums[kind].cells(False if kind in below else None)
    for name in sorted(key for key in sums if key in CLASSES):
        yield "class", name, name[0], name, *sums[name].cells(None)
    for key in sorted(key for key in sums if key.startswith("Σ")):
        of = sums[key]
        yield "ledger", key, key[-1], "", *of.cells(not of.opening and of.into == of.out)


def _movements(facts: Facts) -> dict[str, tuple[int, int, int]]:
    """Account → fen when the period began, into it and out of it since; without a first day, all there ever was."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (_, account), (into, out) in facts.flows.items():
        found[account][0] += into
        found[account][1] += out
    before = facts.turnover_before
    moved = {}
    for account, (into, out) in sorted(found.items()):
        earlier_in, earlier_out = before.get(account, (0, 0))
        moved[account] = (earlier_in - earlier_out, into - earlier_in, out - earlier_out)
    return moved


TRIAL_BALANCE = Report(
    "trial-balance",
    "试算平衡",
    "Trial balance",
    columns("""
row text 行 (科目、类别、账) | row (account, class, ledger)
account text 科目 | account
ledger text 账 | ledger
class text 类别 | class
accounts integer 户数 | accounts
opening_fen fen 期初余额 | opening balance
into_fen fen 借入 | into
out_fen fen 贷出 | out of
change_fen fen 本期变动 | change
balance_fen fen 期末余额 | closing balance
balanced flag 平衡 | balanced
"""),
    _balance,
    verdict="balanced",
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
