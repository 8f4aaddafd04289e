"""Signals in contracts, parties and invoices: just over a threshold, related or sharing parties, one invoice twice.

Pure functions over typed rows, whatever their order; bounds are inclusive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any

from marketplace.findings.found import Bill, Contract, Declared, Found, bounded, yuan
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.relations import Party, Relation, find_relation
from marketplace.vouchers.signals import Code, percent

# Anybody has an address there: sharing one says nothing.
PUBLIC_MAIL = frozenset(
    {
        "qq.com", "vip.qq.com", "foxmail.com", "163.com", "126.com", "yeah.net", "188.com", "vip.163.com", "139.com",
        "189.cn", "wo.cn", "sina.com", "sina.cn", "vip.sina.com", "sohu.com", "aliyun.com", "21cn.com", "tom.com",
        "263.net", "gmail.com", "outlook.com", "hotmail.com", "live.com", "live.cn", "msn.com", "icloud.com", "me.com",
        "yahoo.com", "yahoo.com.cn", "yahoo.cn", "proton.me", "protonmail.com",
    }
)  # fmt: skip
NATIONWIDE = 20  # digits of a number that is unique in the country, whoever issued it (数电发票)


# --- just over a threshold --------------------------------------------------------------------------------------------


def decide_just_over(amount_fen: int, least_fen: int, just_over_bp: int) -> bool:
    """From the least amount itself up to so many basis points above it."""
    return 0 < least_fen <= amount_fen and amount_fen * 10_000 <= least_fen * (10_000 + just_over_bp)


def find_spend_just_over(rows: Iterable[Contract], rules: ProgrammeFile, programme: str, today: date) -> list[Found]:
    """One finding per contract whose settled spending stopped just over the programme's least amount."""
    signals, found = rules.signals, []
    for row in sorted(rows, key=lambda row: row.id):
        if not row.last_use_day or not decide_just_over(row.spent_fen, rules.min_spend_fen, signals.just_over_bp):
            continue
        idle = (today - date.fromisoformat(row.last_use_day)).days
        if idle >= signals.just_over_idle_days:
            found.append(_stopped(row, rules.min_spend_fen, programme))
    return found


def _stopped(row: Contract, least_fen: int, programme: str) -> Found:
    over = yuan(row.spent_fen - least_fen)
    return Found(
        code=Code.SPEND_JUST_OVER,
        severity="low",
        programme=programme,
        organisation=row.organisation,
        provider=row.provider,
        keys=(row.id,),
        contracts=(row.id,),
        amount_fen=row.spent_fen,
        zh=f"合同实际金额 {yuan(row.spent_fen)} 元, 只比最低要求多 {over} 元, {row.last_use_day} 起不再调用",
        en=f"the contract's settled {yuan(row.spent_fen)} yuan are {over} above the least amount, and nothing was "
        f"called after {row.last_use_day}",
        evidence={"spent_fen": row.spent_fen, "least_fen": least_fen, "days": [{"day": row.last_use_day}]},
    )


def find_contracts_just_over(rows: Iterable[Contract], rules: ProgrammeFile, programme: str) -> list[Found]:
    """One finding per enterprise with several contracts whose amounts are just over the least one."""
    over: dict[str, list[Contract]] = defaultdict(list)
    for row in rows:
        if decide_just_over(row.contract_fen, rules.min_spend_fen, rules.signals.just_over_bp):
            over[row.organisation].append(row)
    return [
        _several(sorted(held, key=lambda row: row.id), rules.min_spend_fen, programme)
        for _, held in sorted(over.items())
        if len(held) >= rules.signals.just_over_contracts
    ]


def _several(rows: list[Contract], least_fen: int, programme: str) -> Found:
    total = sum(row.contract_fen for row in rows)
    return Found(
        code=Code.CONTRACTS_JUST_OVER,
        severity="medium",
        programme=programme,
        organisation=rows[0].organisation,
        provider=rows[0].provider if len({row.provider for row in rows}) == 1 else "",
        keys=(rows[0].organisation,),
        contracts=tuple(row.id for row in rows),
        amount_fen=total,
        zh=f"{len(rows)} 份合同的金额都刚过最低 {yuan(least_fen)} 元, 合计 {yuan(total)} 元",
        en=f"{len(rows)} contracts are each just over the least {yuan(least_fen)} yuan, {yuan(total)} in all",
        evidence={
            "least_fen": least_fen,
            "contracts": [{"contract": row.id, "contract_fen": row.contract_fen} for row in bounded(rows)],
            "contract_count": len(rows),
        },
    )


# --- parties ----------------------------------------------------------------------------------------------------------


def _dealings(rows: Iterable[Contract]) -> list[list[Contract]]:
    """Contracts by caller and provider, all in order."""
    found: dict[tuple[str, str], list[Contract]] = defaultdict(list)
    for row in rows:
        found[row.organisation, row.provider].append(row)
    return [sorted(held, key=lambda row: row.id) for _, held in sorted(found.items())]


def find_related(
    rows: Iterable[Contract], declared: Mapping[str, Declared], above: Mapping[str, Party], rules: ProgrammeFile,
    programme: str,
) -> list[Found]:  # fmt: skip
    """One finding per caller and provider whom the programme counts as related and would not pay between.

    `declared` by organisation; `above`: who holds them, by credit code.
    """
    found = []
    for held in _dealings(rows):
        caller, provider = declared[held[0].organisation], declared[held[0].provider]
        relation = find_relation(caller.party, provider.party, above)
        if relation and rules.related_party_policy == "refuse" and rules.relates(relation):
            found.append(_related(held, caller, provider, relation, programme))
    return found


def _related(
    held: list[Contract], caller: Declared, provider: Declared, relation: Relation, programme: str
) -> Found:  # fmt: skip
    share = percent(relation.share_bp)
    steps = [
        {"kind": link.kind, "holder": link.holder, "held": link.held, "share_bp": link.share_bp}
        for link in bounded(relation.links)
    ]
    return _between(
        Code.RELATED_PARTY, "high", held, programme,
        zh=f"{caller.name} 与供应商 {provider.name} 为关联方, 关联最弱一环为 {share}",
        en=f"{caller.name_en} and the provider {provider.name_en} are related; "
        f"the weakest step between them is {share}",
        evidence={"links": steps},
    )  # fmt: skip


def find_shared_persons(
    rows: Iterable[Contract], declared: Mapping[str, Declared], programme: str
) -> list[Found]:  # fmt: skip
    """One finding per caller and provider on both of whose sides the same name stands, as representative or as
    shareholder without a code. Demonstrations share placeholders and are left out."""
    found = []
    for held in _dealings(rows):
        caller, provider = declared[held[0].organisation], declared[held[0].provider]
        if caller.party.is_demo or provider.party.is_demo or caller.party.organisation == provider.party.organisation:
            continue
        names = sorted(_names(caller.party) & _names(provider.party))
        both = caller.party.legal_person and caller.party.legal_person == provider.party.legal_person
        if both:
            names = [name for name in names if name != caller.party.legal_person]  # they are related: told as such
        if names:
            found.append(
                _between(
                    Code.SHARED_PERSON, "medium", held, programme,
                    zh=f"{caller.name} 与供应商 {provider.name} 申报的人或股东中有同名者: {'、'.join(bounded(names))}",
                    en=f"{caller.name_en} and the provider {provider.name_en} both declare {', '.join(bounded(names))}",
                    evidence={"names": bounded(names)},
                )
            )  # fmt: skip
    return found


def _names(party: Party) -> set[str]:
    names = {party.legal_person, *(holding.name for holding in party.shareholders)}
    return {"".join(name.split()) for name in names if name.strip()}


def find_shared_contacts(
    rows: Iterable[Contract], declared: Mapping[str, Declared], programme: str
) -> list[Found]:  # fmt: skip
    """One finding per caller and provider with one address, telephone, or e-mail domain that is no public service's."""
    found = []
    for held in _dealings(rows):
        caller, provider = declared[held[0].organisation], declared[held[0].provider]
        if caller.party.is_demo or provider.party.is_demo or caller.party.organisation == provider.party.organisation:
            continue
        shared = shared_contacts(caller, provider)
        if shared:
            said = bounded(each["value"] for each in shared)
            found.append(
                _between(
                    Code.SHARED_CONTACT, "medium", held, programme,
                    zh=f"{caller.name} 与供应商 {provider.name} 使用相同的{'、'.join(said)}",
                    en=f"{caller.name_en} and the provider {provider.name_en} share {', '.join(said)}",
                    evidence={"shared": bounded(shared)},
                )
            )  # fmt: skip
    return found


def shared_contacts(caller: Declared, provider: Declared) -> list[dict[str, str]]:
    """`[{kind: address | phone | domain, value}]` that both have, in this order."""
    found = []
    plain: dict[str, Callable[[Declared], str]] = {
        "address": lambda each: "".join(each.address.split()).lower(),
        "phone": lambda each: "".join(filter(str.isdigit, each.phone)),
    }
    for kind, read in plain.items():
        if read(caller) and read(caller) == read(provider):
            found.append({"kind": kind, "value": caller.address if kind == "address" else caller.phone})
    domains = sorted((caller.domains & provider.domains) - PUBLIC_MAIL)
    return found + [{"kind": "domain", "value": domain} for domain in domains]


def _between(
    code: Code, severity: Any, held: list[Contract], programme: str, *, zh: str, en: str,
    evidence: dict[str, Any],
) -> Found:  # fmt: skip
    """A finding about a caller and a provider, with their contracts."""
    contracts = tuple(row.id for row in held)
    return Found(
        code=code,
        severity=severity,
        programme=programme,
        organisation=held[0].organisation,
        provider=held[0].provider,
        keys=(held[0].organisation, held[0].provider),
        contracts=contracts,
        amount_fen=sum(row.spent_fen for row in held),
        zh=zh,
        en=en,
        evidence=evidence | {"organisations": [held[0].organisation, held[0].provider]},
    )


# --- invoices ---------------------------------------------------------------------------------------------------------


def find_reused_invoices(rows: Iterable[Bill]) -> list[Found]:
    """One finding per number that stands under several contracts (of one provider, or one that is unique nationwide),
    and per file that was handed in for several numbers; of every programme.

    One invoice may lawfully be divided between contracts, and then its backing is watched by `claims.backing`; several
    enterprises or several numbers are graver.
    """
    by: dict[tuple[str, ...], list[Bill]] = defaultdict(list)
    for row in rows:
        number = row.number.strip().upper()
        by["number", "" if len(number) >= NATIONWIDE else row.provider, number].append(row)
        for digest in sorted(set(row.files)):
            by["file", digest].append(row)
    found = [(keys, sorted(held, key=lambda row: row.id)) for keys, held in sorted(by.items()) if len(held) > 1]
    return [_reused(keys, held) for keys, held in found if keys[0] == "number" or len(_numbers(held)) > 1]


def _numbers(held: Iterable[Bill]) -> list[str]:
    return sorted({row.number.strip().upper() for row in held})


def _reused(keys: tuple[str, ...], held: list[Bill]) -> Found:
    contracts = sorted({row.contract for row in held})
    total = sum(row.amount_fen for row in held)
    numbers = _numbers(held)
    grave = len(numbers) > 1 or len({row.organisation for row in held}) > 1
    what_zh = f"发票 {numbers[0]} " if keys[0] == "number" else "同一发票文件"
    what_en = f"invoice {numbers[0]}" if keys[0] == "number" else "one invoice file"
    return Found(
        code=Code.INVOICE_REUSED,
        severity="high" if grave else "medium",
        programme="",
        organisation=held[0].organisation,
        provider=held[0].provider,
        keys=keys,
        contracts=tuple(contracts),
        amount_fen=total,
        zh=f"{what_zh}登记了 {len(held)} 次, 涉及 {len(contracts)} 份合同, 合计 {yuan(total)} 元",
        en=f"{what_en} was entered {len(held)} times, for {len(contracts)} contracts, {yuan(total)} yuan in all",
        evidence={
            "invoices": [
                {"id": row.id, "number": row.number, "contract": row.contract, "amount_fen": row.amount_fen,
                 "organisation": row.organisation, "files": bounded(sorted(row.files))}
                for row in bounded(held)
            ],
            "invoice_count": len(held),
        },
    )  # fmt: skip
