"""From a peft model to an adapter of a base exported plain: what goes to which site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.adapter_sites import A_SUFFIX, B_SUFFIX, AdapterSites
from model_store.adapter_targets import sites_of_modules
from model_store.bundle import Bundle
from model_store.errors import Unprocessable
from model_store.graph_specs import read_model_proto

Array = npt.NDArray[Any]


def lora_parameters(tuned: Any, sites: Mapping[str, str], adapter: str = "default") -> dict[str, Array]:
    """The parameters of a peft LoRA model by the names of an adapter file: `A = lora_A.T`, `B = lora_B.T · scaling`.

    `sites`: module path → site. `KeyError` names a module with LoRA that has no site: it would be left out silently.
    """
    tensors: dict[str, Array] = {}
    for path, module in tuned.get_base_model().named_modules():
        if adapter not in getattr(module, "lora_A", {}):
            continue
        site = sites[path]
        down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        tensors[site + A_SUFFIX] = np.ascontiguousarray(down.detach().cpu().numpy().T)
        tensors[site + B_SUFFIX] = np.ascontiguousarray(up.detach().cpu().numpy().T * module.scaling[adapter])
    return tensors


def sites_of_encoder(encoder: Any, parent: Bundle, sites: AdapterSites) -> dict[str, str]:
    """Module path in the encoder → the site of the parent's graph, but for its head.

    The graph was exported from a module around the encoder, so its paths may be longer. `Unprocessable`
    SITES_NOT_IN_SOURCE where a site is no module of the encoder, or two have one.
    """
    places = {path: node for path, node in sites_of_modules(read_model_proto(parent.model_path)).items()
              if node in sites.low_rank and node != sites.head}  # fmt: skip
    paths = {path for path, _ in encoder.named_modules()}
    found: dict[str, str] = {}
    for place, node in places.items():
        segments = place.split(".")
        longest = next((p for at in range(len(segments)) if (p := ".".join(segments[at:])) in paths), None)
        if longest is not None:
            found[longest] = node
    if sorted(found.values()) != sorted(name for name in sites.low_rank if name != sites.head):
        raise _not_in_source(parent.manifest.name)
    return found


def classifier_parameters(model: Any, parent: Bundle, sites: AdapterSites) -> dict[str, Array]:
    """What a trained `PooledClassifier` is as an adapter of its parent: low-rank matrices, and the head exactly.

    The head's site maps `[pooled, 1]` [D + 1] to the logits: A is `[weights; bias]` [D + 1, K], B the first K rows of
    the identity. Raises as `sites_of_encoder`.
    """
    places = sites_of_encoder(model.encoder.get_base_model(), parent, sites)
    head = sites.low_rank[sites.head]
    weight, bias = (part.detach().cpu().numpy() for part in (model.head.weight, model.head.bias))
    return {
        **lora_parameters(model.encoder, places),
        head.a: np.ascontiguousarray(np.vstack([weight.T, bias[None]]), dtype=np.float32),
        head.b: np.eye(len(bias), head.features_out, dtype=np.float32),
    }


def _not_in_source(name: str) -> Unprocessable:
    return Unprocessable(
        "SITES_NOT_IN_SOURCE",
        zh=f"{name} 的适配点与其可训练权重的模块对不上",
        en=f"the adapter sites of {name} are not modules of the weights it is trained from",
        remedy_zh="请供应商用 algomart sites 从由这些权重导出的图重新制作基座",
        remedy_en="its vendor should make the base again with algomart sites, from a graph exported of these weights",
        field="model",
    )
