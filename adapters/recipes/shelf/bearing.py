"""Ten conditions of a rolling bearing from 85 ms of vibration at 12 kHz (Case Western Reserve University)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters.datasets import BEARING, BEARING_SIZE, read_bearing
from adapters.recipes.shelf import models, nets
from adapters.recipes.shelf.family import Entrant, Family, Lesson, Parts, Price, Row, Text, Trained
from adapters.samples import Samples
from model_store.manifest import Feature, Label, Target
from model_store.step_specs import PreStep, Series, Spectrum

RATE_HZ = 12_000
TRAIN_SHARE = 0.6
GAP_WINDOWS = 2  # between the two sides, so that neighbours in time are not split
BINS = 64
FEATURES = [
    Feature(
        name="vibration", kind="series", title_zh="振动加速度", title_en="Vibration (acceleration)", unit="g",
        length=BEARING_SIZE, aliases=["振动", "加速度", "振动信号", "accelerometer", "DE_time", "signal"],
    )
]  # fmt: skip
LABELS = [
    Label(name="normal", title_zh="正常", title_en="Normal", aliases=["Normal", "正常"]),
    *(
        Label(name=f"{part}_{size}", title_zh=f"{zh} {mm} mm", title_en=f"{en}, {mm} mm", aliases=[f"{short}{size}"])
        for part, zh, en, short in (
            ("inner_race", "内圈故障", "Inner-race fault", "IR"),
            ("ball", "滚动体故障", "Ball fault", "B"),
            ("outer_race", "外圈故障", "Outer-race fault", "OR"),
        )
        for size, mm in (("007", "0.18"), ("014", "0.36"), ("021", "0.53"))
    ),
]


def load(data: Path) -> Parts:
    found = read_bearing(data)
    rows = Samples(rows=found.rows, labels=found.targets, groups=found.groups)
    train: list[int] = []
    test: list[int] = []
    for record in dict.fromkeys(found.groups):
        places = [at for at, group in enumerate(found.groups) if group == record]
        cut = round(len(places) * TRAIN_SHARE)
        train += places[:cut]
        test += places[cut + GAP_WINDOWS :]
    return Parts(rows.take(train), rows.take(test))


def pre_signal(_: Samples) -> list[PreStep]:
    return [Series(features=["vibration"], tensor="signal", size=BEARING_SIZE)]


def pre_spectrum(_: Samples) -> list[PreStep]:
    return [Series(features=["vibration"], tensor="signal", size=BEARING_SIZE), Spectrum(tensor="signal", bins=BINS)]


def generate(random: np.random.Generator, count: int, _: Samples) -> list[Row]:
    """Made-up vibrations: a shaft's harmonics, a ringing at a random resonance struck at a fault's rate, and noise."""
    seconds = np.arange(BEARING_SIZE) / RATE_HZ
    rows: list[Row] = []
    for _number in range(count):
        shaft, resonance, rate = 29.95, random.uniform(1500, 4500), random.uniform(100, 165)
        since = np.mod(seconds, 1 / rate)
        ringing = np.exp(-since * 900) * np.sin(2 * np.pi * resonance * since)
        signal = 0.05 * np.sin(2 * np.pi * shaft * seconds) + random.uniform(0, 1.2) * ringing
        signal += random.normal(0, 0.06, BEARING_SIZE)
        rows.append({"vibration": [round(float(sample), 4) for sample in signal]})
    return rows


def convolution(lesson: Lesson) -> Trained:
    """Three strided convolutions on the raw signal; each batch is scaled and shifted at random."""
    import torch
    from torch import nn

    def shaken(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shift = int(torch.randint(0, BEARING_SIZE, (1,), generator=generator))
        gain = 0.8 + 0.4 * torch.rand((len(batch), 1, 1), generator=generator)
        return torch.roll(batch, shift, dims=2) * gain

    nets.prepare(lesson.seed)
    network = nets.series_net(1, (12, 24, 32), 15, (4, 4, 2), len(lesson.labels), lesson.x, 32)
    nets.learn(network, lesson.x, lesson.classes, epochs=40, rate=4e-3, seed=lesson.seed,
               loss_of=nn.CrossEntropyLoss(), augment=shaken)  # fmt: skip
    return nets.classes_trained(network, lesson, {"widths": [12, 24, 32], "kernel": 15, "epochs": 40})


FAMILY = Family(
    slug="bearing-condition",
    task="series-classification",
    modality="series",
    features=FEATURES,
    target=Target(
        name="condition", kind="category", title_zh="轴承状态", title_en="Bearing condition",
        aliases=["状态", "故障类型", "轴承状态", "fault", "label"],
    ),
    labels=LABELS,
    source=BEARING,
    licence="other",
    scenarios=["预测性维护"],
    links=["运维服务"],
    chains=["高端装备制造", "电气机械及设备"],
    keywords=["轴承", "振动", "故障诊断", "滚动轴承", "bearing", "vibration"],
    load=load,
    pre=pre_spectrum,
    generate=generate,
    split=Text(
        "每条录音前 60% 训练, 隔开两个窗口后其余评测; 训练与评测来自同一台试验台的同一只轴承, 因此接近满分",
        "the first 60% of each recording to learn from, the rest after a gap of two windows to measure on; both are the"
        " same bearings on the same rig, which is why the scores are near perfect",
    ),
    use=Text(
        "由 12 kHz 采样的 1024 点振动加速度 (约 85 毫秒) 判断轴承正常, 或内圈、滚动体、外圈的故障及尺寸。",
        "From 1,024 samples of acceleration at 12 kHz (85 ms): a sound bearing, or a fault of inner race, ball or outer"
        " race and its size.",
    ),
    limits=Text(
        "只有一台试验台、空载、十条录音; 分数饱和, 只说明流程可用, 不证明能用于其他轴承。换轴承型号、转速或测点须用自"
        "有数据再训练。"
        "数据供研究使用, 须注明凯斯西储大学轴承数据中心。",
        "One rig, no load, ten recordings. The scores are saturated: they show that it works, not that it carries"
        " over to"
        " other bearings. Another type, speed or mounting point needs retraining. The data is public for research;"
        " credit"
        " the Case Western Reserve University Bearing Data Center.",
    ),
    main_metric="macro_f1",
    entrants=[
        Entrant(
            name="lingnan/bearing-spectrum-linear",
            title_zh="轴承故障诊断·频谱线性", title_en="Bearing condition, spectrum and linear",
            summary_zh="64 个频带的振动频谱加逻辑回归; 模型仅几千字节。",
            summary_en="A 64-band spectrum and logistic regression: a graph of a few kilobytes.",
            method="spectrum, logistic regression", price=Price("rows", 150_000, 70_000), fit=models.logistic(10.0),
        ),
        Entrant(
            name="pearl/bearing-spectrum-forest",
            title_zh="轴承故障诊断·频谱随机森林", title_en="Bearing condition, spectrum and forest",
            summary_zh="64 个频带的振动频谱加小型随机森林。",
            summary_en="A 64-band spectrum and a small random forest.",
            method="spectrum, random forest", price=Price("rows", 250_000, 100_000),
            fit=models.forest(trees=40, depth=10, leaf=1),
        ),
        Entrant(
            name="dongzhi/bearing-conv",
            title_zh="轴承故障诊断·一维卷积", title_en="Bearing condition, 1-D convolution",
            summary_zh="一维卷积网络直接读取原始振动波形, 无须设计特征。",
            summary_en="A one-dimensional convolutional network reads the raw waveform: no features to design.",
            method="1-D convolution", price=Price("rows", 420_000, 180_000), fit=convolution, pre=pre_signal,
        ),
    ],
)  # fmt: skip
