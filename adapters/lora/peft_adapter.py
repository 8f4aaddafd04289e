"""From a peft model to an adapter of a base exported plain: which node is which module, and what goes there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from model_store.adapter_injection import linear_nodes
from model_store.adapter_sites import A_SUFFIX, B_SUFFIX

SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's dynamo exporter writes beside each node
Array = npt.NDArray[Any]


def sites_of_modules(model: onnx.ModelProto) -> dict[str, str]:
    """Module path (`encoder.layer.0.query`) → name of the linear node that it became, for either torch exporter."""
    linear = set(linear_nodes(model))
    found: dict[str, str] = {}
    for node in model.graph.node:
        name = node.name or node.output[0]
        if name in linear:
            module = _module_of(node)
            if module:
                found.setdefault(module, name)
    return found


def _module_of(node: onnx.NodeProto) -> str:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is not None:  # "['', 'encoder', 'encoder.layer.0.query', 'linear_3']": the last is the operation
        names = re.findall(r"'([^']*)'", scopes)
        return names[-2] if len(names) > 1 else ""
    return ".".join(node.name.strip("/").split("/")[:-1])  # "/encoder/layer.0/query/MatMul"


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
