"""The coverage map (chain × link, and scenarios) and the city's counters 3 / 15 / 200."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from sqlmodel import Session, col, func, select

from marketplace.catalogue.labels import LINKS, SCENARIOS
from marketplace.catalogue.tables import Listing
from marketplace.organisations.tables import Organisation
from marketplace.usage.tables import Usage

TARGETS = {"base": 3, "vertical": 15, "small_or_app": 200}  # by 2027, measure 3
RECENT_MS = 30 * 86_400_000


@cache
def shipped_chains() -> dict[str, Any]:
    """The table of industry chains: `{assumption, groups: [{title_zh, title_en, chains: [{name, en}]}]}`."""
    loaded: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "chains.yaml").read_text(encoding="utf-8"))
    return loaded


def decide_counted(listing: Listing, owner: Organisation) -> bool:
    """Whether a listing counts towards 3 / 15 / 200: listed to all, and neither a starter nor a demonstration."""
    shown = listing.status == "listed" and listing.visibility == "public" and owner.status == "approved"
    return shown and not listing.is_starter and not owner.is_demo


def counters(session: Session, at_ms: int) -> dict[str, Any]:
    """Per tier: target, listed (counted), called by others in the last 30 days, and what does not count, apart."""
    called = set(
        session.exec(
            select(Usage.listing_id)
            .where(Usage.occurred_at_ms >= at_ms - RECENT_MS, Usage.purpose == "use", Usage.status == "ok")
            .distinct()
        )
    )
    result = {
        tier: {"target": target, "listed": 0, "called_30d": 0, "demonstration": 0} for tier, target in TARGETS.items()
    }
    for listing, owner in _listed(session):
        tier = listing.tier if listing.tier in ("base", "vertical") else "small_or_app"
        if decide_counted(listing, owner):
            result[tier]["listed"] += 1
            result[tier]["called_30d"] += listing.id in called
        else:
            result[tier]["demonstration"] += 1
    return result


def coverage(session: Session, at_ms: int) -> dict[str, Any]:
    """Chain × link cells and scenarios with the listings in them; empty cells are there, with count 0."""
    cells: dict[tuple[str, str], list[str]] = {}
    scenarios: dict[str, list[str]] = {name: [] for name in SCENARIOS}
    known = [chain["name"] for group in shipped_chains()["groups"] for chain in group["chains"]]
    others: set[str] = set()
    for listing, _ in _listed(session):
        others.update(chain for chain in listing.chains if chain not in known)
        for chain in listing.chains:
            for link in listing.links:
                cells.setdefault((chain, link), []).append(listing.name)
        for scenario in listing.scenarios:
            scenarios.setdefault(scenario, []).append(listing.name)
    chains = [*known, *sorted(others)]
    return {
        "chain_groups": shipped_chains()["groups"],
        "chains_are_an_assumption": bool(shipped_chains().get("assumption")),
        "chains": chains,
        "links": [{"name": name, "en": en} for name, en in LINKS.items()],
        "cells": [
            {
                "chain": chain,
                "link": link,
                "count": len(cells.get((chain, link), [])),
                "models": cells.get((chain, link), []),
            }
            for chain in chains
            for link in LINKS
        ],
        "scenarios": [
            {"name": name, "en": SCENARIOS.get(name, name), "count": len(models), "models": models}
            for name, models in scenarios.items()
        ],
        "counters": counters(session, at_ms),
        "listed": session.exec(
            select(func.count()).select_from(Listing).where(Listing.status == "listed", Listing.visibility == "public")
        ).one(),
    }


def _listed(session: Session) -> list[tuple[Listing, Organisation]]:
    query = (
        select(Listing, Organisation)
        .join(Organisation, col(Organisation.id) == col(Listing.organisation_id))
        .where(Listing.status == "listed", Listing.visibility == "public")
        .order_by(Listing.name)
    )
    return [(listing, owner) for listing, owner in session.exec(query)]
