"""From a finished run to a private derivative in the catalogue, and what its owner is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketplace.adapting.tables import Job
from marketplace.catalogue.publishing import publish
from model_store.bundle import open_bundle
from model_store.manifest import Feature, Manifest

if TYPE_CHECKING:
    from marketplace.market import Market


_KEY = '"Authorization: Bearer $ALGOMART_KEY"'  # in double quotes: the shell fills it in


def register_derivative(market: Market, job: Job) -> dict[str, Any]:
    """Publish what `job` made as a private version of its organisation, with its parent and relation.

    Done twice (a crash in between), it answers with the version that is there already. Raises what `publish` raises:
    the inspection's refusal, `NotFound` for a parent withdrawn meanwhile, `Unprocessable` for a relation not true.
    """
    folder = Path(job.result["bundle"])
    manifest = open_bundle(folder).manifest
    published = publish(
        market, folder, organisation_id=job.organisation_id, published_by=job.created_by or "system", private=True
    )
    told = {name: value for name, value in job.result.items() if name != "bundle"}
    return {
        **told,
        "name": published.name,
        "version": published.version,
        "version_id": published.version_id,
        "state": published.state,
        "digest": published.digest,
        "parent": manifest.parent.model_dump() if manifest.parent else None,
        "relation": manifest.parent.relation if manifest.parent else None,
        "call": how_to_call(manifest, market.settings.url),
    }


def how_to_call(manifest: Manifest, url: str) -> dict[str, Any]:
    """The address, an example of the inputs, and a curl command that can be pasted once the key is filled in."""
    path = f"/v1/use/{manifest.name}"
    image = next((feature for feature in manifest.features if feature.kind == "image"), None)
    if image is not None:
        curl = f"curl -H {_KEY} -H 'Content-Type: image/png' --data-binary @part.png {url}{path}"
        return {"path": path, "inputs": None, "curl": curl}
    inputs = {feature.name: example_of(feature) for feature in manifest.features}
    body = json.dumps({"inputs": inputs}, ensure_ascii=False).replace("'", "'\\''")
    curl = f"curl -H {_KEY} -H 'Content-Type: application/json' -d '{body}' {url}{path}"
    return {"path": path, "inputs": inputs, "curl": curl}


def example_of(feature: Feature) -> Any:
    """A value that the feature takes: its own example, else one in its range."""
    if feature.example is not None:
        return feature.example
    if feature.default is not None:
        return feature.default
    if feature.kind == "category":
        return feature.categories[0] if feature.categories else ""
    if feature.kind == "text":
        return "设备运行异常"
    if feature.kind == "series":
        return [0.0] * (feature.length or 16)
    if feature.minimum is not None and feature.maximum is not None:
        return (feature.minimum + feature.maximum) / 2
    return 0
