"""Reports on what bounds a voucher: caps of enterprises, tranches and contracts, and the contracts themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from marketplace.ledger import accounts
from marketplace.organisations.tables import AuditEvent
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts
from marketplace.reports.voucher_tables import approved_tranches, full_positions
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Voucher
from marketplace.vouchers.tranches import decide_waiting


@dataclass(slots=True)
class Taken:
    """What stands against one cap, in fen. `issued`: the faces of vouchers; of a contract, what was reserved for it."""

    vouchers: int = 0
    issued: int = 0
    returned: int = 0
    spent: int = 0

    def add(self, issued: int, returned: int, spent: int) -> None:
        self.vouchers += 1
        self.issued += issued
        self.returned += returned
        self.spent += spent

    def cells(self, limit: int | None) -> Row:
        held = self.issued - self.returned - self.spent
        room = None if limit is None else limit - self.spent - held
        return limit, self.vouchers, self.issued, self.returned, self.spent, held, room


def _caps(facts: Facts) -> Iterator[Row]:
    """The three kinds of counters, each as the ledger's postings had it by then; no counter is read."""
    yield from _caps_of_enterprises(facts)
    yield from _caps_of_tranches(facts)
    yield from _caps_of_contracts(facts)


def _spent(where: dict[str, int]) -> int:
    return sum(where[part] for part in ("used", "batched", "paid", "clawed"))


def _caps_of_enterprises(facts: Facts) -> Iterator[Row]:
    found: dict[str, Taken] = defaultdict(Taken)
    of: dict[str, Voucher] = {}
    for row, where in full_positions(facts):
        found[row.cap_code].add(row.face_fen, where["returned"], _spent(where))
        standing = of.setdefault(row.cap_code, row)  # the newest version's limit is the one that holds
        if facts.programmes[row.programme_id].version >= facts.programmes[standing.programme_id].version:
            of[row.cap_code] = row
    for code, cap in sorted(found.items()):
        row = of[code]
        programme = facts.programmes[row.programme_id]
        yield ("enterprise", code, programme.code, row.organisation_id, facts.name(row.organisation_id),
               code.rpartition(",")[2].rstrip("]"), "",
               *cap.cells(programme.document.get("cap_fen")), None)  # fmt: skip


def _caps_of_tranches(facts: Facts) -> Iterator[Row]:
    """Every tranche of a version that was active by then: the newest version's amount is the limit that holds."""
    found: dict[str, Taken] = defaultdict(Taken)
    for row, where in full_positions(facts):
        found[row.pool_code].add(row.face_fen, where["returned"], _spent(where))
    limits: dict[str, tuple[str, str, int, bool]] = {}
    approved = approved_tranches(facts)
    active = {event.subject for event in facts.events("programme.activate")}
    for programme in sorted(facts.programmes.values(), key=lambda each: (each.code, each.version)):
        if programme.id in active:
            rules = rules_of(programme)
            waiting = decide_waiting(rules, approved.get(programme.code, {}))
            for tranche in rules.tranches:
                code = accounts.cap_pool(programme.code, tranche.code)
                limits[code] = (programme.code, tranche.code, tranche.fen, tranche.code in waiting)
    for code, (name, label, limit, waits) in sorted(limits.items()):
        yield "tranche", code, name, "", "", label, "", *found[code].cells(limit), waits


def _caps_of_contracts(facts: Facts) -> Iterator[Row]:
    """A contract's cap counts what was charged to it even where the government rejects that in the end."""
    found: dict[str, Taken] = defaultdict(Taken)
    limits: dict[str, list[int | None]] = defaultdict(list)
    programmes: dict[str, set[str]] = defaultdict(set)
    history = facts.events_of("subscription.")
    for key, row in facts.reservations.items():
        contract = row.subscription_id
        account = accounts.used(key)
        spent = facts.flows.get(("P5", account), (0, 0))[0] - facts.flows.get(("P13", account), (0, 0))[1]
        held = facts.balances[accounts.reserved(key)] + facts.leased[key]
        found[contract].add(row.amount_fen, row.amount_fen - spent - held, spent)
        gross = _foreseen(history[contract], row.created_at_ms)
        limits[contract].append(None if gross is None else gross * row.ratio_num // row.ratio_den)
        programmes[contract].add(facts.programmes[facts.vouchers[row.voucher_id].programme_id].code)
    for key, cap in sorted(found.items()):
        owner = facts.subscriptions[key].organisation_id
        known = [limit for limit in limits[key] if limit is not None]
        limit = max(known) if len(known) == len(limits[key]) else None  # raised, never lowered
        names = " ".join(sorted(programmes[key]))
        yield "contract", accounts.cap_contract(key), names, owner, facts.name(owner), "", key, *cap.cells(limit), None


def _foreseen(events: list[AuditEvent], at_ms: int) -> int | None:
    """The contract's foreseen gross at an instant; None where its events do not say."""
    told = [e.details["contract_fen"] for e in events if e.at_ms <= at_ms and "contract_fen" in e.details]
    return told[-1] if told else None


CAPS = Report(
    "cap-usage",
    "上限占用",
    "Cap usage",
    columns(
        """
kind text 类别 | kind
cap text 上限账户 | cap
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
period text 期间或批次 | period or tranche
contract text 合同 | contract
limit_fen fen 上限 | limit
vouchers integer 券数 | vouchers
issued_fen fen 已发放 (合同: 累计预留) | issued (contract: reserved in all)
returned_fen fen 已退回 | returned
spent_fen fen 已使用 | spent
held_fen fen 占用 | held
room_fen fen 余量 | room
waits flag 批次待批 | the tranche is not approved yet
"""
    ),
    _caps,
)


def _contracts(facts: Facts) -> Iterator[Row]:
    history = facts.events_of("subscription.")
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for charge in facts.charges():
        sums[charge.subscription][0] += charge.gross_fen
        sums[charge.subscription][1] += charge.subsidy_fen
    held: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for key, row in facts.reservations.items():
        held[row.subscription_id][0] += row.amount_fen
        held[row.subscription_id][1] += facts.balances[accounts.reserved(key)] + facts.leased[key]
    for key, contract in facts.subscriptions.items():
        if facts.programme_id and key not in held:
            continue
        events = history[key]
        foreseen = next((e.details["contract_fen"] for e in reversed(events) if "contract_fen" in e.details), None)
        ended = next((event.at_ms for event in events if event.action == "subscription.end"), None)
        gross, subsidy = sums[key]
        yield (key, contract.organisation_id, facts.name(contract.organisation_id), contract.provider_id,
               facts.name(contract.provider_id), contract.listing_id, contract.created_at_ms, ended, foreseen,
               *held[key], gross, subsidy, gross - subsidy)  # fmt: skip


CONTRACTS = Report(
    "contract-ledger",
    "合同台账",
    "Contract ledger",
    columns(
        """
contract text 合同 | contract
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
provider text 供应商编号 | provider id
provider_name text 供应商 | provider
listing text 商品 | listing
made_at instant 订立 | made at
ended_at instant 结束 | ended at
contract_fen fen 合同预计金额 | foreseen gross
reserved_total_fen fen 累计预留 | reserved in all
reserved_now_fen fen 现有预留 | reserved now
gross_fen fen 已计费 | charged gross
subsidy_fen fen 其中补贴 | of it subsidy
own_fen fen 企业自付 | own cost
"""
    ),
    _contracts,
)
