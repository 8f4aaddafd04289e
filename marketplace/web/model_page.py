"""What a model's page shows: detail, terms for the visitor's organisation, competitors, lineage, snippets, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.requests import Request

from marketplace.access import Actor, optional_actor
from marketplace.catalogue import api as catalogue
from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.keys.authentication import decide_key_state
from marketplace.keys.service import list_keys
from marketplace.market import Market
from marketplace.vouchers import subscriptions
from marketplace.vouchers.quote import quote_calls
from marketplace.web.choosing import principal_of
from marketplace.web.drawing import Interval, intervals
from marketplace.web.rendering import language_of, word_of
from marketplace.web.snippets import image_snippets, json_snippets
from model_store.errors import NotFound, Refusal
from serving.ports import Principal

CARD_CHARACTERS = 20_000
COMPETITORS = 6
CHARTED = 6
_MARKDOWN = MarkdownIt("js-default", {"html": False, "linkify": False}).disable("image")
VISITOR = Principal("", "", "", frozenset(), "")


def model_facts(vendor: str, name: str, request: Request, market: Market) -> dict[str, Any]:
    """Everything the template of the model page is given. `NotFound` for what the visitor may not see."""
    detail = catalogue.get_model(vendor, name, request, market)
    try:
        lineage = catalogue.get_lineage(vendor, name, request, None, market)
    except NotFound:  # nothing published yet
        lineage = None
    actor = optional_actor(request)
    features = detail["model"].get("features") or []
    example = {feature["name"]: feature.get("example") for feature in features}
    url = f"{market.settings.url.rstrip('/')}/v1/use/{detail['name']}"
    pictured = any(feature.get("kind") == "image" for feature in features)
    metrics = _metrics(detail)
    return {
        "model": detail,
        "lineage": lineage,
        "features": features,
        "values": {feature: written(value) for feature, value in example.items()},
        "labels": {label["name"]: label for label in detail["model"].get("labels") or []},
        "snippets": image_snippets(url) if pictured else json_snippets(url, orjson.dumps({"inputs": example}).decode()),
        "outcome": None,
        "refusal": None,
        "card": _card(detail, actor, market),
        "metrics": metrics,
        "chart": _chart(metrics, language_of(request)),
        "competitors": _competitors(detail, actor, market),
        "feature_of": {feature["name"]: feature for feature in features},
        "drift": _drift(detail, actor, market),
    } | _terms(actor, detail, market)


def written(value: Any) -> str:
    """An example as a form field holds it: a series as numbers between commas, of several signals one line each."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "\n".join(written(row) for row in value)
    return ", ".join(str(each) for each in value) if isinstance(value, list) else "" if value is None else str(value)


def _metrics(detail: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of the scorecard's first axis with their basis; of an uninspected version those that it declares."""
    precision = (detail.get("scorecard") or {}).get("precision") or {}
    found = precision.get("metrics") or detail["model"].get("metrics") or []
    return [{"rows": metric.get("n")} | metric for metric in found]


def _chart(metrics: list[dict[str, Any]], language: str) -> Markup:
    """Error bars of what lies between 0 and 1; other units do not share an axis."""
    bars = [
        Interval(word_of(metric["name"], language), metric["value"], metric["low"], metric["high"], best=True)
        for metric in metrics
        if metric.get("low") is not None
        and metric.get("high") is not None
        and 0 <= metric["low"] <= metric["high"] <= 1
    ]
    return intervals("95%", bars[:CHARTED])


def _competitors(detail: dict[str, Any], actor: Actor | None, market: Market) -> list[dict[str, Any]]:
    """Cards of other models of its family: the same inputs and target, so that they can be compared."""
    if not detail.get("family"):
        return []
    own = actor.organisation_id if actor else ""
    found = market.search.search("", filters={"family": [detail["family"]]}, organisation_id=own)
    return [card for card in found.cards if card["name"] != detail["name"]][:COMPETITORS]


def _card(detail: dict[str, Any], actor: Actor | None, market: Market) -> Markup:
    """The card, rendered without its front matter and title, which the page has already; raw HTML in it is shown as
    text and pictures are left out, so that a vendor's card cannot bring anything in. Empty where nothing is listed yet.
    """
    try:
        served = market.bundles.resolve(detail["name"], None, principal_of(actor) if actor else VISITOR)
        text = (Path(served.bundle) / "card.md").read_text(encoding="utf-8")[:CARD_CHARACTERS]
    except (Refusal, OSError):
        return Markup("")
    if text.startswith("---"):
        text = text.partition("\n---")[2].partition("\n")[2]
    lines = text.strip().splitlines()
    body = "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines)
    return Markup(_MARKDOWN.render(body))  # noqa: S704 - the renderer escapes what the vendor wrote


def _drift(detail: dict[str, Any], actor: Actor | None, market: Market) -> dict[str, Any]:
    """How the member's own organisation's latest calls compare with the training data, by feature."""
    if actor is None or market.dataplane is None:
        return {}
    features: dict[str, Any] = market.dataplane.joined.drift_now(
        detail["name"], detail["version"] or 0, actor.organisation_id
    )["features"]
    return {name: found for name, found in features.items() if found["rows"]}


def _terms(actor: Actor | None, detail: dict[str, Any], market: Market) -> dict[str, Any]:
    """What a member's organisation would pay, the contract it has, and the key that its snippets may use."""
    if actor is None or actor.organisation_status != "approved":
        return {"quote": None, "contract": None, "key_prefix": ""}
    with reading(market.engine) as session:
        listing = session.get_one(Listing, detail["listing_id"])
        contract = subscriptions.active_subscription(session, actor.organisation_id, listing.id)
        usable = [
            key for key in list_keys(session, actor.organisation_id) if decide_key_state(key, now_ms()) == "active"
        ]
        return {
            "quote": quote_calls(session, listing, actor.organisation_id, 1000, now_ms()),
            "contract": contract,
            "key_prefix": usable[0].prefix if usable else "",
        }
