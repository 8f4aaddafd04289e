"""Which recipes a factory could try first on its own samples: "adapt first" as a candidate of choosing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters.recipe import recipes
from model_store.manifest import Manifest

MAX_SUGGESTIONS = 4


def suggest(manifests: Sequence[Manifest], rows: int, labelled: bool) -> list[dict[str, Any]]:
    """Recipes that the samples suffice for, on the best candidate that each applies to. No metric is promised."""
    found: list[dict[str, Any]] = []
    if not labelled:
        return found
    for recipe in recipes().values():
        for manifest in manifests:
            if manifest.task not in recipe.tasks or recipe.needs.min_rows > rows:
                continue
            found.append(
                {
                    "recipe": recipe.name,
                    "model": manifest.name,
                    "relation": recipe.relation,
                    "title_zh": recipe.title_zh,
                    "title_en": recipe.title_en,
                    "minutes": recipe.needs.minutes,
                    "zh": f"先用自己的 {rows} 条样本适配, 再与它比较",
                    "en": f"adapt it to your own {rows} samples first, then compare",
                }
            )
            break
    return found[:MAX_SUGGESTIONS]
