"""A transformer encoder with low-rank adapters (peft) and a linear head: training, merging, export. Needs torch.

Hu et al. (2021), "LoRA". Mean pooling over the attention mask, as sentence-transformers does. One thread: a job shares
its machine with the market.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

OPSET = 17
WARMUP_SHARE = 0.1
GRADIENT_BOUND = 1.0
# Every matrix of a layer. Plain `dense` would also hit pooler.dense, which mean pooling never uses.
TARGETS = r".*\.layer\.\d+\.(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Settings:
    rank: int = 8
    epochs: int = 4
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


class PooledClassifier(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Encoder → mean of the token states under the mask → dropout → linear head: logits [N, K]."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, classes)

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kinds = torch.zeros_like(input_ids)
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=kinds)
        mask = attention_mask.unsqueeze(-1).to(states.last_hidden_state.dtype)
        total = (states.last_hidden_state * mask).sum(1)
        return total / mask.sum(1).clamp(min=1e-9)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.pooled(input_ids, attention_mask)))
        return logits


def load_encoder(source: Path) -> Any:
    """The plain encoder of a folder with config.json and model.safetensors: float32, eager attention (it exports)."""
    from transformers import AutoModel

    torch.set_num_threads(1)
    return AutoModel.from_pretrained(
        str(source), attn_implementation="eager", dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def pooled_vectors(encoder: Any, ids: Ids, mask: Ids, batch: int = 32) -> npt.NDArray[np.float32]:
    """Mean-pooled vectors [N, D] of the plain encoder: what its published graph must agree with."""
    model = PooledClassifier(encoder, encoder.config.hidden_size, 2).eval()
    parts = []
    with torch.no_grad():
        for at in range(0, len(ids), batch):
            longest = int(mask[at : at + batch].sum(axis=1).max())
            chosen = (torch.from_numpy(array[at : at + batch, :longest]) for array in (ids, mask))
            parts.append(np.asarray(model.pooled(*chosen).numpy(), np.float32))
    return np.concatenate(parts)


def start_head(model: PooledClassifier, vectors: npt.NDArray[np.float32], wanted: Ids, seed: int) -> None:
    """Set the head to the best linear classifier on the frozen vectors, in place.

    A random head would first pull the base about; starting from the linear probe keeps what the base knows (Kumar et
    al., 2022), and a few hundred rows are then enough.
    """
    from adapters import linear

    weights, bias = linear.head_weights(
        linear.fit(vectors, [f"{place:06d}" for place in wanted], seed, strength=0.1, one_unit=True)
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights.T)))
        model.head.bias.copy_(torch.from_numpy(bias))


def build(encoder: Any, classes: int, settings: Settings, targets: list[str] | None = None) -> PooledClassifier:
    """The encoder frozen but for adapters, and a fresh head. `targets`: module paths, None: all matrices."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, lora_dropout=0.05, target_modules=targets or TARGETS,
        bias="none",
    )  # fmt: skip
    width = encoder.config.hidden_size
    return PooledClassifier(get_peft_model(encoder, config), width, classes)


def train(
    model: PooledClassifier, ids: Ids, mask: Ids, wanted: Ids, settings: Settings, report: Callable[..., None]
) -> None:
    """AdamW with warm-up and linear decay; classes weighted by their rarity; reports the loss of every few steps."""
    random = torch.Generator().manual_seed(settings.seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.01)
    steps = settings.epochs * -(-len(ids) // settings.batch)
    warm = max(1, int(steps * WARMUP_SHARE))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, max(0.05, (steps - step) / max(1, steps - warm)))
    )
    counts = np.bincount(wanted, minlength=int(wanted.max()) + 1)
    weights = torch.tensor(len(wanted) / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    loss_of = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.05)
    model.train()
    done = 0
    for epoch in range(settings.epochs):
        for chosen in torch.randperm(len(ids), generator=random).split(settings.batch):
            places = chosen.numpy()
            longest = int(mask[places].sum(axis=1).max())  # shorter batches are cheaper batches
            batch = (torch.from_numpy(array[places, :longest]) for array in (ids, mask))
            loss = loss_of(model(*batch), torch.from_numpy(wanted[places]))
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, GRADIENT_BOUND)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            done += 1
            report(done / steps, loss=float(loss.detach()), epoch=epoch + done / steps)
    model.eval()


def save_adapter(model: PooledClassifier, folder: Path) -> None:
    """The low-rank matrices and the head as safetensors, before merging: what was learnt, without the base."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    learnt = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "lora_" in name}
    learnt |= {f"head.{name}": tensor.contiguous() for name, tensor in model.head.state_dict().items()}
    save_file(learnt, str(folder / "adapter.safetensors"))


def merge(model: PooledClassifier) -> None:
    """Fold the adapters into the base's matrices, in place. Eval mode first: dropout must not reach the export."""
    model.eval()
    model.encoder = model.encoder.merge_and_unload()
    model.eval()


def probabilities(model: PooledClassifier, ids: Ids, mask: Ids, batch: int = 32) -> npt.NDArray[np.float64]:
    """softmax of the logits, [N, K]."""
    parts = []
    with torch.no_grad():
        for at in range(0, len(ids), batch):
            chosen = (torch.from_numpy(array[at : at + batch]) for array in (ids, mask))
            parts.append(torch.softmax(model(*chosen), dim=1).double().numpy())
    return np.concatenate(parts)


class _WithSoftmax(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, model: PooledClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.model(input_ids, attention_mask), dim=1)


def export(model: PooledClassifier, path: Path, ids: Ids, mask: Ids) -> None:
    """`input_ids`, `attention_mask` INT64 [N, L] → "probabilities" [N, K], batch and length dynamic.

    The older exporter: seconds instead of half a minute, and it keeps a zero bias (the newer one drops it).
    """
    dynamic = {"input_ids": {0: "N", 1: "L"}, "attention_mask": {0: "N", 1: "L"}, "probabilities": {0: "N"}}
    wrapped = _WithSoftmax(model).eval()  # a fresh wrapper starts in train mode
    torch.onnx.export(
        wrapped,
        (torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2])),
        str(path),
        input_names=["input_ids", "attention_mask"],
        output_names=["probabilities"],
        dynamic_axes=dynamic,
        opset_version=OPSET,
        dynamo=False,
    )
