"""A tiny transformer encoder in torch, its export by either exporter, and peft's LoRA on it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5
        mixed: torch.Tensor = self.dropout(self.dense(scores.softmax(-1) @ self.value(x)))
        normed: torch.Tensor = self.norm(x + mixed)
        return normed


class Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.dense(x.mean(1)).tanh()
        return pooled


class SmallEncoder(nn.Module):
    """`ids[n, length]` → `y[n, 3]`."""

    def __init__(self, width: int = 16, words: int = 50) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))
        self.pooler = Pooler(width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        y: torch.Tensor = self.head(self.pooler(x))
        return y


def export(model: nn.Module, path: Path, *, dynamo: bool) -> None:
    """The plain model, with free batch and length."""
    model.eval()
    ids = torch.zeros((2, 5), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = {"ids": {0: torch.export.Dim("n"), 1: torch.export.Dim("length")}}
            torch.onnx.export(model, (ids,), str(path), input_names=["ids"], output_names=["y"], dynamo=True,
                              dynamic_shapes=free, external_data=False, verbose=False)  # fmt: skip
        else:
            axes = {"ids": {0: "n", 1: "length"}, "y": {0: "n"}}
            torch.onnx.export(model, (ids,), str(path), input_names=["ids"], output_names=["y"], dynamo=False,
                              dynamic_axes=axes)  # fmt: skip


def with_lora(model: nn.Module, targets: Sequence[str], rank: int = 4, seed: int = 2) -> Any:
    """peft's model with random A and B (its own B starts at zero and would show nothing)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    pattern = "|".join(each.replace(".", r"\.") for each in targets)
    tuned = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=f"({pattern})"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 2)
    return tuned.eval()
