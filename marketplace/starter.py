"""The starter shelf: bundles that ship with the market, published by demonstration vendors at the first start.

`catalogue/starter/` holds `<anything>.zip` (a bundle), beside it `<anything>.report.json` (its inspection report,
made when the shelf was built), and `starter.yaml`::

    vendors: {lingnan: {name_zh: 岭南智造(演示), name_en: Lingnan Smart Making (demonstration)}}
    prices:                                # by model; `default` for the rest
      default: {unit: calls, fen_per_unit: "0.20", derivative_fen_per_unit: "0.10"}
      dongzhi/steel-faults: {unit: rows, fen_per_unit: "0.37"}
    filed: [dongzhi/steel-faults]          # carry the demonstration filing; every starter where this is not said

Idempotent: what is published already is left alone, so a newer release adds its new starters to an old market.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sqlmodel import Session, select

from marketplace.catalogue.filings import attach_filing, get_filing
from marketplace.catalogue.prices import add_price, list_prices, micro_of_fen
from marketplace.catalogue.publishing import inspect, publish
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.demo import DEMO_FILING_NUMBER, add_demo_vendor, demo_member
from marketplace.market import Market
from marketplace.organisations.tables import Organisation
from marketplace.review.service import approve_review, submit_version
from model_store.bundle import MANIFEST, Bundle, unpack
from model_store.errors import Refusal

FOLDER = Path(__file__).parent / "catalogue" / "starter"
_log = logging.getLogger("algomart.starter")


@dataclass(frozen=True, slots=True)
class Starter:
    """One shipped bundle: its zip, and the report that was made for it (None: it is inspected at first start)."""

    archive: Path
    report: dict[str, Any] | None


def find_starters(folder: Path = FOLDER) -> list[Starter]:
    """Every shipped bundle, by file name; parents stand before what was made from them."""
    starters = []
    for archive in sorted(folder.glob("*.zip")):
        sidecar = archive.with_suffix(".report.json")
        report = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else None
        starters.append(Starter(archive, report))
    return sorted(starters, key=lambda starter: _parent_of(starter.archive) is not None)


def starter_terms(folder: Path = FOLDER) -> dict[str, Any]:
    """`starter.yaml`, {} where there is none."""
    path = folder / "starter.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return loaded


def seed_shelf(market: Market, folder: Path = FOLDER) -> int:
    """Publish, list and price every starter that is not on the shelf yet; answers how many were added."""
    terms, added = starter_terms(folder), 0
    for starter in find_starters(folder):
        name = _name_of(starter.archive)
        with reading(market.engine) as session:
            if session.exec(select(Listing.id).where(Listing.name == name)).first() is not None:
                continue
        try:
            _add(market, starter, name, terms)
            added += 1
        except Refusal as refusal:  # one bad starter must not keep the market from opening
            _log.error("starter %s is left out: %s", name, refusal)
    return added


def _add(market: Market, starter: Starter, name: str, terms: dict[str, Any]) -> None:
    vendor = name.partition("/")[0]
    with transaction(market.engine) as session:
        owner = _owner(session, vendor, terms.get("vendors", {}).get(vendor, {}))
    bundle = _unpacked(market, starter.archive)
    published = publish(
        market,
        bundle.path,
        organisation_id=owner.id,
        published_by="system",
        private=False,
        report=_trusted_report(starter, bundle),
        is_starter=True,
    )
    _, reviewer = demo_member(market.engine, "operator")
    with transaction(market.engine) as session:
        version = session.get_one(ModelVersion, published.version_id)
        listing = session.get_one(Listing, version.listing_id)
        if version.state == "inspected":
            review = submit_version(session, version, listing, actor="system", at_ms=now_ms())
            approve_review(session, review.id, actor=reviewer.id, at_ms=now_ms(), note="starter")
        _price(session, listing, terms)
        if name in terms.get("filed", [name]):
            attach_filing(session, listing, get_filing(session, DEMO_FILING_NUMBER), actor=reviewer.id)
    market.catalogue_changed(listing.id)


def _owner(session: Session, vendor: str, names: dict[str, str]) -> Organisation:
    owner = session.exec(select(Organisation).where(Organisation.slug == vendor)).first()
    return owner or add_demo_vendor(session, vendor, names.get("name_zh", ""), names.get("name_en", ""))


def _unpacked(market: Market, archive: Path) -> Bundle:
    """The bundle straight in its final, immutable folder, so that publishing need not copy it again."""
    return unpack(archive, market.settings.home.resolve() / "bundles" / _digest_of(archive))


def _trusted_report(starter: Starter, bundle: Bundle) -> dict[str, Any] | None:
    """The shipped report, if it passed and was made for these very bytes; None: publishing inspects."""
    report = starter.report
    if report is None or not report.get("passed") or report.get("digest") != bundle.digest:
        return None
    return report | {"private": False}


def write_report(archive: Path, scratch: Path) -> dict[str, Any]:
    """Inspect a starter and write the report beside it: what the shelf's build does once, so that no start has to."""
    bundle = unpack(archive, scratch / archive.stem)
    report = inspect(bundle.path, private=False) | {"digest": bundle.digest}
    text = json.dumps(report, ensure_ascii=False, indent=1, sort_keys=True)
    archive.with_suffix(".report.json").write_text(text + "\n", encoding="utf-8")
    return report


def _price(session: Session, listing: Listing, terms: dict[str, Any]) -> None:
    if list_prices(session, listing.id):
        return
    prices = terms.get("prices", {})
    wanted = {"unit": "calls", "fen_per_unit": "0.20"} | prices.get("default", {}) | prices.get(listing.name, {})
    for kind, field in (("use", "fen_per_unit"), ("derivative", "derivative_fen_per_unit")):
        if wanted.get(field) is not None:
            micro = micro_of_fen(str(wanted[field]))
            add_price(
                session,
                listing,
                kind=kind,
                unit=str(wanted["unit"]),
                micro_per_unit=micro,
                actor="system",
                at_ms=now_ms(),
            )


def _manifest_of(archive: Path) -> tuple[dict[str, Any], bytes]:
    with zipfile.ZipFile(archive) as content:
        raw = content.read(MANIFEST)
    loaded: dict[str, Any] = json.loads(raw)
    return loaded, raw


def _name_of(archive: Path) -> str:
    return str(_manifest_of(archive)[0]["name"])


def _parent_of(archive: Path) -> Any:
    return _manifest_of(archive)[0].get("parent")


def _digest_of(archive: Path) -> str:
    return hashlib.sha256(_manifest_of(archive)[1]).hexdigest()
