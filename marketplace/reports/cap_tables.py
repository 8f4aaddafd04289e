"""Reports on what bounds a voucher: caps of enterprises, tranches and contracts, and the contracts themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from marketplace.ledger import accounts
from marketplace.reports.declared import Report, Row, columns
from marketplace.reports.facts import Facts
from marketplace.reports.voucher_tables import full_positions
from marketplace.vouchers.tables import Voucher


def _caps(facts: Facts) -> Iterator[Row]:
    found: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("issued", "returned", "spent", "vouchers"), 0)
    )
    of: dict[str, Voucher] = {}
    for row, where in full_positions(facts):
        cap = found[row.cap_code]
        cap["issued"] += row.face_fen
        cap["returned"] += where["returned"]
        cap["spent"] += sum(where[part] for part in ("used", "batched", "paid", "clawed"))
        cap["vouchers"] += 1
        standing = of.setdefault(row.cap_code, row)  # the newest version's limit is the one that holds
        if facts.programmes[row.programme_id].version >= facts.programmes[standing.programme_id].version:
            of[row.cap_code] = row
    for code, cap in sorted(found.items()):
        row = of[code]
        limit = facts.programmes[row.programme_id].document.get("cap_fen")
        held = cap["issued"] - cap["returned"] - cap["spent"]
        yield (code, facts.programmes[row.programme_id].code, row.organisation_id, facts.name(row.organisation_id),
               code.rpartition(",")[2].rstrip("]"), limit, cap["vouchers"], cap["issued"], cap["returned"],
               cap["spent"], held, None if limit is None else limit - cap["spent"] - held)  # fmt: skip


CAPS = Report(
    "cap-usage",
    "上限占用",
    "Cap usage",
    columns(
        """
cap text 上限账户 | cap
programme text 券项目 | programme
enterprise text 企业编号 | enterprise id
name text 企业 | enterprise
period text 期间 | period
limit_fen fen 上限 | limit
vouchers integer 券数 | vouchers
issued_fen fen 已发放 | issued
returned_fen fen 已回池 | returned
spent_fen fen 已使用 | spent
held_fen fen 占用 | held
room_fen fen 余量 | room
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
