"""Who is related to whom: the graph of what organisations declare, walked upwards from both sides.

Nodes are organisations, firms and persons, by credit code or another code that identifies them; an edge leads from who
is held to who holds, by control (counted as all of it) or by a share. Two organisations are related when somebody
holds both, or one holds the other, and no step on the way is below the least share: the rule of 国家税务总局公告2016年
第42号, article 2(1) (25%; through a firm in between, the share of the last step counts). The same legal representative
relates them too. A name alone identifies nobody here: it is a finding to look at (`marketplace.findings`), no refusal.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

ALL_BP = 10_000
LEAST_SHARE_BP = 2_500
MAX_STEPS = 10  # from an organisation up to who holds it
MAX_NODES = 500  # that one walk visits


@dataclass(frozen=True, slots=True)
class Holding:
    """A declared shareholder. `code` "" where only the name is known."""

    name: str
    code: str
    share_bp: int


@dataclass(frozen=True, slots=True)
class Party:
    """What makes two organisations related. `uscc` "" where unknown; `controllers` are USCCs or person ids."""

    organisation: str
    kind: str
    status: str
    uscc: str = ""
    legal_person: str = ""
    controllers: frozenset[str] = frozenset()
    is_demo: bool = False
    shareholders: tuple[Holding, ...] = ()

    @property
    def node(self) -> str:
        return self.uscc or self.organisation

    def holders(self) -> dict[str, int]:
        """Who holds it directly, by code, and how much in basis points: controllers all of it."""
        found = {holding.code: holding.share_bp for holding in self.shareholders if holding.code}
        return found | dict.fromkeys(self.controllers - {""}, ALL_BP)


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """One step: `holder` holds `share_bp` of `held`; or both are the same, or have one representative, by `kind`
    holds | same | representative."""

    kind: str
    holder: str
    held: str
    share_bp: int


@dataclass(frozen=True, slots=True)
class Relation:
    """`share_bp`: the least share on the strongest way between the two, 10,000 for control or identity."""

    share_bp: int
    links: tuple[Link, ...]


def find_relation(caller: Party, provider: Party, known: Mapping[str, Party] | None = None) -> Relation | None:
    """The strongest relation, None where there is none. `known`: other organisations' declarations, by node.

    Demonstration organisations all carry one placeholder as legal person, which relates nobody.
    """
    if caller.organisation == provider.organisation or (caller.uscc and caller.uscc == provider.uscc):
        return Relation(ALL_BP, (Link("same", caller.node, provider.node, ALL_BP),))
    real = not (caller.is_demo or provider.is_demo)
    if real and caller.legal_person and caller.legal_person == provider.legal_person:
        return Relation(ALL_BP, tuple(Link("representative", caller.legal_person, each.node, ALL_BP)
                                      for each in (caller, provider)))  # fmt: skip
    declared = dict(known or {}) | {caller.node: caller, provider.node: provider}
    above, other = owners(caller, declared), owners(provider, declared)
    shared = sorted(above.keys() & other.keys())
    if not shared:
        return None
    best = max(shared, key=lambda node: min(above[node][0], other[node][0]))
    return Relation(min(above[best][0], other[best][0]), above[best][1] + other[best][1])


def owners(party: Party, known: Mapping[str, Party]) -> dict[str, tuple[int, tuple[Link, ...]]]:
    """Everybody who holds `party`, itself included: by node the least share on the strongest way, and that way."""
    found: dict[str, tuple[int, tuple[Link, ...]]] = {}
    queue: list[tuple[int, int, str, tuple[Link, ...]]] = [(-ALL_BP, 0, party.node, ())]
    while queue and len(found) < MAX_NODES:
        negative, steps, node, way = heapq.heappop(queue)
        if node in found:
            continue
        found[node] = -negative, way
        held = known.get(node)
        if held is None or steps == MAX_STEPS:
            continue
        for holder, share_bp in sorted(held.holders().items()):
            if holder not in found:
                link = Link("holds", holder, node, share_bp)
                heapq.heappush(queue, (-min(-negative, share_bp), steps + 1, holder, (*way, link)))
    return found
