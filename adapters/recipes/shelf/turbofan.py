"""Remaining life of a turbofan from the last 30 cycles of 14 sensors (C-MAPSS FD001, simulated)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapters import windows
from adapters.datasets import TURBOFAN, TURBOFAN_SENSORS, Rows, read_turbofan
from adapters.recipes.shelf import models, nets
from adapters.recipes.shelf.family import Arrays, Entrant, Family, Lesson, Parts, Price, Row, Text, Trained
from adapters.samples import Samples
from model_store.manifest import Feature, Target
from model_store.step_specs import PreStep, ScaleTensor, Window

SIZE = 30
CAP = 125.0
# sensor number → (symbol in the data's description, zh, en, unit)
SENSORS = {
    2: ("T24", "低压压气机出口总温", "Total temperature at LPC outlet", "°R"),
    3: ("T30", "高压压气机出口总温", "Total temperature at HPC outlet", "°R"),
    4: ("T50", "低压涡轮出口总温", "Total temperature at LPT outlet", "°R"),
    7: ("P30", "高压压气机出口总压", "Total pressure at HPC outlet", "psia"),
    8: ("Nf", "风扇物理转速", "Physical fan speed", "rpm"),
    9: ("Nc", "核心机物理转速", "Physical core speed", "rpm"),
    11: ("Ps30", "高压压气机出口静压", "Static pressure at HPC outlet", "psia"),
    12: ("phi", "燃油流量与 Ps30 之比", "Ratio of fuel flow to Ps30", "pps/psi"),
    13: ("NRf", "风扇修正转速", "Corrected fan speed", "rpm"),
    14: ("NRc", "核心机修正转速", "Corrected core speed", "rpm"),
    15: ("BPR", "涵道比", "Bypass ratio", "1"),
    17: ("htBleed", "引气焓", "Bleed enthalpy", "1"),
    20: ("W31", "高压涡轮冷却引气流量", "HPT coolant bleed", "lbm/s"),
    21: ("W32", "低压涡轮冷却引气流量", "LPT coolant bleed", "lbm/s"),
}
FEATURES = [
    Feature(
        name=f"s{number}", kind="number", title_zh=SENSORS[number][1], title_en=SENSORS[number][2],
        unit=SENSORS[number][3], aliases=[SENSORS[number][0], f"sensor_{number}", f"传感器{number}"],
    )
    for number in TURBOFAN_SENSORS
]  # fmt: skip
NAMES = [feature.name for feature in FEATURES]


def load(data: Path) -> Parts:
    train, test = read_turbofan(data, "train", CAP), read_turbofan(data, "test", CAP)
    last = [at for at, unit in enumerate(test.groups) if at + 1 == len(test.groups) or test.groups[at + 1] != unit]
    return Parts(_samples(train), _samples(test), scored=last)


def _samples(found: Rows) -> Samples:
    return Samples(rows=found.rows, values=np.array(found.targets), groups=found.groups)


def pre(train: Samples) -> list[PreStep]:
    """Windows of standardised channels: on raw readings (9,000 rpm ± 20) float32 would lose the deviations."""
    table = np.array([[row[name] for name in NAMES] for row in train.rows])
    mean, scale = ([float(f"{value:.7g}") for value in part] for part in (table.mean(axis=0), table.std(axis=0)))
    return [
        Window(features=NAMES, tensor=windows.TENSOR, size=SIZE, group="unit", pad="edge"),
        ScaleTensor(tensor=windows.TENSOR, mean=mean, scale=scale, axis=1),
    ]


def generate(random: np.random.Generator, count: int, train: Samples) -> list[Row]:
    """Made-up engines: each sensor starts in its usual range and drifts steadily, with noise; one row a cycle."""
    bounds = {name: np.quantile([row[name] for row in train.rows], (0.2, 0.8)) for name in NAMES}
    rows: list[Row] = []
    for unit in range(1, count + 1):
        share = random.uniform(0.1, 0.9)
        for cycle in range(1, 9):
            row: Row = {"unit": unit}
            for name, (low, high) in bounds.items():
                level = share + 0.02 * cycle + random.normal(0, 0.05)
                row[name] = float(f"{low + (high - low) * level:.6g}")
            rows.append(row)
    return rows


def on_statistics(fit: Any) -> Any:
    """A `fit` on the window statistics, the statistics being the first part of its graph."""

    def fitted(lesson: Lesson) -> Trained:
        from adapters.measure import run_model

        statistics = windows.statistics_graph(lesson.x.shape[1], lesson.x.shape[2])

        def columns(inputs: Arrays) -> Arrays:
            return {"am_statistics": run_model(statistics, inputs)["am_statistics"]}

        inner = fit(Lesson(columns(lesson.inputs), lesson.samples, lesson.labels, lesson.positive, lesson.seed))
        graph = windows.behind_statistics(statistics, inner.graph)
        return Trained(graph, lambda inputs: inner.answer(columns(inputs)), inner.params, threshold=inner.threshold)

    return fitted


def convolution(lesson: Lesson) -> Trained:
    """Two wide convolutions over 30 cycles, flattened; learns the standardised remaining life.

    Each engine has levels of its own, so every batch gets noise and, by channel, a random level: without it the network
    remembers the hundred engines instead of how they wear (settings chosen on twenty training engines kept aside).
    """
    import torch
    from torch import nn

    deviation = torch.tensor(lesson.x.std(axis=(0, 2), keepdims=True))

    def disturbed(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = 0.3 * torch.randn(batch.shape, generator=generator)
        level = 0.4 * torch.randn((*batch.shape[:2], 1), generator=generator)
        return batch + deviation * (noise + level)

    nets.prepare(lesson.seed)
    wanted = lesson.samples.values
    mean, scale = float(wanted.mean()), float(wanted.std())
    network = nets.flat_series_net(lesson.x.shape[1], SIZE, (16, 8), 15, lesson.x, 24)
    target = ((wanted - mean) / scale).astype(np.float32)[:, None]
    nets.learn(network, lesson.x, target, epochs=8, rate=3e-3, seed=lesson.seed, loss_of=nn.MSELoss(),
               augment=disturbed, decay=0.02)  # fmt: skip
    return nets.value_trained(network, lesson, mean, scale, {"widths": [16, 8], "kernel": 15, "epochs": 8})


FAMILY = Family(
    slug="turbofan-life",
    task="series-regression",
    modality="series",
    features=FEATURES,
    target=Target(
        name="remaining_life", kind="number", title_zh="剩余寿命", title_en="Remaining useful life", unit="cycle",
        aliases=["RUL", "rul", "剩余寿命", "剩余使用寿命", "剩余循环数"],
    ),
    labels=[],
    source=TURBOFAN,
    licence="Apache-2.0",
    scenarios=["预测性维护"],
    links=["运维服务"],
    chains=["高端装备制造"],
    keywords=["剩余寿命", "退化", "发动机", "RUL", "turbofan", "prognostics"],
    load=load,
    pre=pre,
    generate=generate,
    split=Text(
        "公开划分: 100 台训练发动机, 另 100 台评测发动机; 指标只取每台评测发动机最后一个循环, 寿命上限 125 循环",
        "as published: 100 engines to learn from, 100 others to measure on, at the last cycle of each; life capped at"
        " 125",
    ),
    use=Text(
        "由同一台设备最近 30 个循环的 14 个传感器读数估计剩余可用循环数; 多行时按时间先后排列, 多台设备用 unit 列区分"
        " (可省略); 每行得到以该行"
        "结尾的窗口的估计。",
        "From the last 30 cycles of 14 sensors of one machine: how many cycles are left. Rows stand in the order of"
        " time;"
        " a column `unit` tells machines apart (one machine: leave it out); each row is answered for the window that"
        " ends"
        " there.",
    ),
    limits=Text(
        "数据来自 NASA C-MAPSS 仿真, 单一工况与单一故障模式; 不能直接用于真实机队, 只示范剩余寿命类方法。剩余寿命超过"
        " 125 循环时一律"
        "答约 125。",
        "Simulated by NASA's C-MAPSS: one operating condition, one fault mode. It shows the method and is not for a"
        " real"
        " fleet. Lives beyond 125 cycles all read about 125.",
    ),
    main_metric="rmse",
    entrants=[
        Entrant(
            name="lingnan/turbofan-life-ridge",
            title_zh="发动机剩余寿命·岭回归", title_en="Turbofan remaining life, ridge",
            summary_zh="由 30 个循环的窗口统计量线性估计剩余寿命; 模型仅几千字节。",
            summary_en="Remaining life, linear in the statistics of a 30-cycle window: a graph of a few kilobytes.",
            method="ridge regression on window statistics", price=Price("rows", 100_000, 50_000),
            fit=on_statistics(models.ridge(0.01)),
        ),
        Entrant(
            name="pearl/turbofan-life-boosting",
            title_zh="发动机剩余寿命·梯度提升", title_en="Turbofan remaining life, gradient boosting",
            summary_zh="由 30 个循环的窗口统计量, 用梯度提升树估计剩余寿命。",
            summary_en="Remaining life from the statistics of a 30-cycle window by gradient boosting.",
            method="gradient boosting on window statistics", price=Price("rows", 300_000, 120_000),
            fit=on_statistics(models.boosting(rounds=120, rate=0.06, leaves=15, least=60, l2=5.0)),
        ),
        Entrant(
            name="dongzhi/turbofan-life-conv",
            title_zh="发动机剩余寿命·一维卷积", title_en="Turbofan remaining life, 1-D convolution",
            summary_zh="一维卷积网络直接读取 30 个循环的 14 路信号, 估计剩余寿命。",
            summary_en="A one-dimensional convolutional network reads 30 cycles of 14 signals and estimates remaining"
            " life.",
            method="1-D convolution", price=Price("rows", 450_000, 200_000), fit=convolution, demo_filing=True,
        ),
    ],
)  # fmt: skip
