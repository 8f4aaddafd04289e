"""Small convolutional networks in torch: 1-D for series, 2-D for pictures. One thread, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters import export
from adapters.recipes.shelf.family import Arrays, Lesson, Trained

Floats = npt.NDArray[np.floating[Any]]
BATCH = 128


def prepare(seed: int) -> None:
    """One thread and a fixed seed: the same data gives the same weights on the same processor."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def series_net(
    channels: int, widths: Sequence[int], kernel: int, strides: Sequence[int], outputs: int, x: Floats, hidden: int
) -> Any:
    """Scaled series [N, C, T] → convolutions → mean and maximum over time → [N, outputs].

    The scaling (mean and deviation of the training series, by channel) is part of the network.
    """
    from torch import nn

    layers: list[Any] = [_scaler(x, (0, 2))]
    before = channels
    for width, stride in zip(widths, strides, strict=True):
        layers += [
            nn.Conv1d(before, width, kernel, stride=stride, padding=kernel // 2),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        ]
        before = width
    layers += [_mean_and_maximum(2), nn.Linear(2 * before, hidden), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def flat_series_net(
    channels: int, size: int, widths: Sequence[int], kernel: int, x: Floats, hidden: int, dropout: float = 0.2
) -> Any:
    """Like `series_net`, but what comes when matters: the last feature maps are flattened, not averaged. → [N, 1]."""
    from torch import nn

    layers: list[Any] = [_scaler(x, (0, 2))]
    before = channels
    for width in widths:
        layers += [nn.Conv1d(before, width, kernel, padding=kernel // 2), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    layers += [nn.AvgPool1d(2), nn.Flatten(), nn.Linear(before * (size // 2), hidden), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def picture_net(channels: int, widths: Sequence[int], embedding: int, x: Floats) -> Any:
    """Pictures [N, C, H, W] → convolutions that halve the side → mean and maximum over the picture → [N, embedding]."""
    from torch import nn

    layers: list[Any] = [_scaler(x, (0, 2, 3))]
    before = channels
    for width in widths:
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        before = width
    return nn.Sequential(*layers, _mean_and_maximum(2, 3), nn.Linear(2 * before, embedding), nn.ReLU())


def _scaler(x: Floats, axes: tuple[int, ...]) -> Any:
    import torch
    from torch import nn

    class Scale(nn.Module):  # type: ignore[misc]  # torch is untyped here
        mean: torch.Tensor
        scale: torch.Tensor

        def __init__(self, mean: Floats, scale: Floats) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
            self.register_buffer("scale", torch.tensor(1.0 / np.maximum(scale, 1e-6), dtype=torch.float32))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return (values - self.mean) * self.scale

    wide = x.astype(np.float64)
    return Scale(wide.mean(axis=axes, keepdims=True), wide.std(axis=axes, keepdims=True))


def _mean_and_maximum(*axes: int) -> Any:
    import torch
    from torch import nn

    class MeanAndMaximum(nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return torch.cat([maps.mean(dim=axes), maps.amax(dim=axes)], dim=1)

    return MeanAndMaximum()


def learn(
    network: Any,
    x: Floats,
    wanted: npt.NDArray[Any],
    *,
    epochs: int,
    rate: float,
    seed: int,
    loss_of: Any,
    augment: Callable[[Any, Any], Any] | None = None,
    decay: float = 1e-4,
) -> None:
    """AdamW with one cycle of the learning rate. `augment(batch, generator)` changes each batch before it is seen."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(np.ascontiguousarray(x, np.float32)), torch.from_numpy(wanted)
    steps = epochs * -(-len(inputs) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs), generator=generator).split(BATCH):
            batch = inputs[chosen] if augment is None else augment(inputs[chosen], generator)
            loss = loss_of(network(batch), targets[chosen])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    network.eval()


def value_trained(network: Any, lesson: Lesson, mean: float, scale: float, params: dict[str, Any]) -> Trained:
    """A network of a standardised value as a graph of the value itself."""
    import torch
    from torch import nn

    class Unscaled(nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(values) * scale + mean
            return found

    return _trained(Unscaled(), lesson, "value", params)


def classes_trained(network: Any, lesson: Lesson, params: dict[str, Any]) -> Trained:
    """A network of logits as a graph of probabilities."""
    from torch import nn

    return _trained(nn.Sequential(network, nn.Softmax(dim=1)), lesson, "probabilities", params)


def embedding_trained(network: Any, lesson: Lesson, params: dict[str, Any]) -> Trained:
    """A network without its head, as a graph of embeddings."""
    return _trained(network, lesson, "embedding", params)


def _trained(module: Any, lesson: Lesson, output: str, params: dict[str, Any]) -> Trained:
    import torch

    module.eval()
    for weight in module.parameters():
        weight.requires_grad_(False)
    example = torch.from_numpy(np.ascontiguousarray(lesson.x[:2], np.float32))
    graph = export.torch_graph(module, example, [lesson.tensor], [output])

    def answer(inputs: Arrays) -> Arrays:
        (x,) = inputs.values()
        with torch.no_grad():
            parts = [module(torch.from_numpy(x[at : at + 512])).numpy() for at in range(0, len(x), 512)]
        return {output: np.concatenate(parts)}

    return Trained(graph, answer, params)
