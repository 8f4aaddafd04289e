"""Tokens of a call, counted where every protocol passes: from the tensors that the graph is given."""

from __future__ import annotations

import numpy as np

from model_store.manifest import Manifest
from model_store.step_specs import Tokenise
from model_store.tensors import Array


def token_tensor_of(manifest: Manifest) -> str | None:
    """The tensor that tells a call's tokens: the mask, else the ids; None for a model that has no tokenizer."""
    made = {name for step in manifest.pre if isinstance(step, Tokenise) for name in step.tensors}
    return next((name for name in ("attention_mask", "input_ids") if name in made), None)


def count_tokens(tensor: Array) -> int:
    """Its filled places: padding is none."""
    return int(np.count_nonzero(tensor))
