"""The coverage map (chain × link, and scenarios) and the city's counters 3 / 15 / 200."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select as select_columns
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
    shown = listing.status == "listed" and listing.visibility == "public"
    return shown and decide_shown_counted(owner.status, is_starter=listing.is_starter, is_demo=owner.is_demo)


def decide_shown_counted(standing: str, *, is_starter: bool, is_demo: bool) -> bool:
    """The same of a public listing that is listed; `standing` and `is_demo`: its owner's."""
    return standing == "approved" and not is_starter and not is_demo


def counters(session: Session, at_ms: int) -> dict[str, Any]:
    """Per tier: target, listed (counted), called by others in the last 30 days, and what does not count, apart."""
    recent = select(Usage.listing_id).where(
        Usage.occurred_at_ms >= at_ms - RECENT_MS, Usage.purpose == "use", Usage.status == "ok"
    )
    called = col(Listing.id).in_(recent).label("called")
    kinds: list[Any] = [Listing.tier, Listing.is_starter, Organisation.status, Organisation.is_demo]
    alike = (  # the shelf's page shows these figures: no listing of thousands is read for them
        select_columns(*kinds, called, func.count())
        .join(Organisation, col(Organisation.id) == col(Listing.organisation_id))
        .where(col(Listing.status) == "listed", col(Listing.visibility) == "public")
        .group_by(*kinds, "called")
    )
    result = {
        tier: {"target": target, "listed": 0, "called_30d": 0, "demonstration": 0} for tier, target in TARGETS.items()
    }
    rows: list[Any] = list(session.connection().execute(alike))
    for tier, is_starter, standing, is_demo, was_called, count in rows:
        shown = result[tier if tier in ("base", "vertical") else "small_or_app"]
        if decide_shown_counted(standing, is_starter=is_starter, is_demo=is_demo):
            shown["listed"] += count
            shown["called_30d"] += count if was_called else 0
        else:
            shown["demonstration"] += count
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
