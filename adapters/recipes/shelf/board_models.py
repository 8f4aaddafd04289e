"""Three families on crops of circuit boards: which defect, a base for further heads, and anything unusual (DeepPCB)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.datasets import BOARDS
from adapters.recipes.shelf import boards, nets
from adapters.recipes.shelf.family import Arrays, Entrant, Family, Lesson, Parts, Price, Text, Trained
from model_store.manifest import Label, Target
from model_store.step_specs import Anomaly

EPOCHS = 12
OVERKILL = 0.05
LABELS = [
    Label(name="ok", title_zh="正常", title_en="Flawless", aliases=["OK", "正常", "良品", "good"]),
    Label(name="open", title_zh="断路", title_en="Open circuit", aliases=["断路", "开路"]),
    Label(name="short", title_zh="短路", title_en="Short circuit", aliases=["短路"]),
    Label(name="mousebite", title_zh="鼠咬", title_en="Mouse bite", aliases=["缺口", "鼠咬"]),
    Label(name="spur", title_zh="毛刺", title_en="Spur", aliases=["毛刺"]),
    Label(name="copper", title_zh="残铜", title_en="Spurious copper", aliases=["残铜", "余铜"]),
    Label(name="pinhole", title_zh="针孔", title_en="Pinhole", aliases=["针孔"]),
]
SPLIT = Text(
    "按电路板设计整组划分: 评测用的板型从未训练过。训练行含真实缺陷 (每处错位取 4 次)、完好局部, 以及在完好模板上绘制"
    "的缺陷; 评测行全部取自实拍板",
    "whole board designs to one side: none measured on was learnt from. Training rows are real defects (each cropped"
    " four"
    " times, shifted), flawless crops, and defects drawn on flawless templates; test rows are all of tested boards",
)
LIMITS = Text(
    "35 块裸板的二值化图像, 64×64 像素, 线宽与 DeepPCB 相近; 彩色照片、贴装后的板、其他分辨率须用自有图片训练新的分类"
    "头。",
    "Binarised pictures of 35 bare boards, 64 × 64 pixels, traces as wide as in DeepPCB. Colour photographs, assembled"
    " boards and other resolutions need a new head trained on your own pictures.",
)
KEYWORDS = ["电路板", "PCB", "AOI", "外观检测", "缺陷", "circuit board", "inspection"]


def turned(batch: Any, generator: Any) -> Any:
    """Each batch mirrored and turned by quarters at random, with a little noise: a board has no upright side."""
    import torch

    quarters, flip = (int(torch.randint(0, n, (1,), generator=generator)) for n in (4, 2))
    batch = torch.rot90(batch, quarters, (2, 3))
    batch = torch.flip(batch, (3,)) if flip else batch
    return batch + 0.03 * torch.randn(batch.shape, generator=generator)


_LEARNT: dict[str, tuple[Any, Any]] = {}  # the base is the trunk of a classifier: one training serves both


def backbone(lesson: Lesson, widths: Sequence[int], embedding: int, classes: Sequence[int]) -> Any:
    """(network without a head, with a head), learnt on the lesson's rows as `classes`; rare classes count more."""
    wanted = np.asarray(classes, np.int64)
    digest = hashlib.sha256(lesson.x.tobytes() + wanted.tobytes()).hexdigest()
    key = f"{digest} {tuple(widths)} {embedding} {lesson.seed}"
    if key not in _LEARNT:
        _LEARNT[key] = _learn_backbone(lesson, widths, embedding, wanted)
    return _LEARNT[key]


def _learn_backbone(lesson: Lesson, widths: Sequence[int], embedding: int, wanted: Any) -> tuple[Any, Any]:
    import torch
    from torch import nn

    nets.prepare(lesson.seed)
    body = nets.picture_net(1, widths, embedding, lesson.x)
    whole = nn.Sequential(body, nn.Linear(embedding, int(wanted.max()) + 1))
    counts = np.bincount(wanted)
    weights = torch.tensor((counts.mean() / np.maximum(counts, 1)) ** 0.5, dtype=torch.float32)
    nets.learn(whole, lesson.x, wanted, epochs=EPOCHS, rate=4e-3, seed=lesson.seed,
               loss_of=nn.CrossEntropyLoss(weight=weights, label_smoothing=0.05), augment=turned)  # fmt: skip
    return body, whole


def classifier(widths: Sequence[int], embedding: int) -> Callable[[Lesson], Trained]:
    """Convolutions and a head of seven classes."""

    def fit(lesson: Lesson) -> Trained:
        _, whole = backbone(lesson, widths, embedding, lesson.classes.tolist())
        return nets.classes_trained(whole, lesson, {"widths": list(widths), "embedding": embedding, "epochs": EPOCHS})

    return fit


def base(lesson: Lesson) -> Trained:
    """The convolutions alone: 64 numbers for a crop."""
    body, _ = backbone(lesson, (16, 32, 64), 64, _kinds(lesson))
    return nets.embedding_trained(body, lesson, {"widths": [16, 32, 64], "embedding": 64, "epochs": EPOCHS})


def distance(lesson: Lesson) -> Trained:
    """Whitened distance of a crop's embedding from those of flawless crops; the threshold from crops kept aside.

    The embedding learnt to tell *drawn* defects apart: no real defect took part.
    """
    from adapters import anomalies, calibration, graphs

    body, _ = backbone(lesson, (12, 24, 48), 32, _kinds(lesson))
    embedded = nets.embedding_trained(body, lesson, {})
    good = lesson.x[np.array([name == "ok" for name in lesson.samples.labels])]
    aside = np.random.default_rng(lesson.seed).permutation(len(good)) < len(good) * 0.3
    vectors = embedded.answer({lesson.tensor: good})["embedding"]
    mean, whiten = anomalies.whitening(vectors[~aside])
    threshold = calibration.threshold_at_overkill(anomalies.whitened_distance(vectors[aside], mean, whiten), OVERKILL)

    def answer(inputs: Arrays) -> Arrays:
        found = anomalies.whitened_distance(embedded.answer(inputs)["embedding"], mean, whiten)
        return {"score": found.astype(np.float32).reshape(-1, 1)}

    graph = graphs.append_whitened_distance(embedded.graph, "embedding", mean, whiten)
    params = {"widths": [12, 24, 48], "embedding": 32, "epochs": EPOCHS, "overkill": OVERKILL}
    return Trained(graph, answer, params, post=[Anomaly(tensor="score", threshold=threshold)])


def _kinds(lesson: Lesson) -> list[int]:
    """The defects as classes; a family that does not tell them apart keeps them in `groups`."""
    kinds = lesson.samples.groups or lesson.samples.labels
    names = [label.name for label in LABELS]
    return [names.index(kind) for kind in kinds]


def load_odd(data: Path) -> Parts:
    """Flawless and *drawn* crops to learn from; flawless and real defects to measure on; labels ok or defect."""
    parts = boards.load(data)
    ok = [at for at, label in enumerate(parts.train.labels) if label == "ok"]
    drawn = range(ok[-1] + 1, len(parts.train.labels))  # real defects come first, then flawless crops, then drawn ones
    train = parts.train.take([*ok, *drawn])
    for part in (train, parts.test):
        part.groups = part.labels
        part.labels = ["ok" if label == "ok" else "defect" for label in part.groups]
    return Parts(train, parts.test)


DEFECTS = Family(
    slug="board-defects",
    task="image-classification",
    modality="image",
    features=boards.FEATURES,
    target=Target(
        name="defect", kind="category", title_zh="缺陷类型", title_en="Defect", aliases=["缺陷", "缺陷类型", "label"]
    ),
    labels=LABELS,
    source=BOARDS,
    licence="MIT",
    scenarios=["缺陷检测"],
    links=["生产制造"],
    chains=["电子信息制造"],
    keywords=KEYWORDS,
    load=boards.load,
    pre=boards.pre,
    generate=boards.generate,
    split=SPLIT,
    use=Text(
        "对自动光学检测 (AOI) 给出的可疑位置裁取 64×64 局部图, 判断是正常, 还是断路、短路、鼠咬、毛刺、残铜或针孔。",
        "For a 64 × 64 crop around a suspicious spot from optical inspection: flawless, or open, short, mouse bite,"
        " spur,"
        " spurious copper or pinhole.",
    ),
    limits=LIMITS,
    main_metric="macro_f1",
    entrants=[
        Entrant(
            name="lingnan/board-defects-compact",
            title_zh="电路板缺陷分类·紧凑卷积", title_en="Board defects, compact convolution",
            summary_zh="判断裸板局部图的六类缺陷或正常; 紧凑卷积网络, 适合边缘设备。",
            summary_en="Six defects or none in a crop of a bare board by a compact convolutional network, fit for the"
            " edge.",
            method="convolution, 8-16-24", price=Price("images", 300_000, 120_000), fit=classifier((8, 16, 24), 24),
        ),
        Entrant(
            name="dongzhi/board-defects-conv",
            title_zh="电路板缺陷分类·卷积", title_en="Board defects, convolution",
            summary_zh="判断裸板局部图的六类缺陷或正常; 三层卷积网络。",
            summary_en="Six defects or none in a crop of a bare board by a convolutional network of three layers.",
            method="convolution, 16-32-64", price=Price("images", 600_000, 240_000), fit=classifier((16, 32, 64), 64),
            demo_filing=True,
        ),
        Entrant(
            name="pearl/board-defects-deep",
            title_zh="电路板缺陷分类·四层卷积", title_en="Board defects, four-layer convolution",
            summary_zh="判断裸板局部图的六类缺陷或正常; 四层卷积网络, 感受野更大。",
            summary_en="Six defects or none in a crop of a bare board by a network of four layers that sees wider.",
            method="convolution, 12-24-48-64", price=Price("images", 500_000, 200_000),
            fit=classifier((12, 24, 48, 64), 48),
        ),
    ],
)  # fmt: skip
BASE = Family(
    slug="board-embedding",
    task="embedding",
    modality="image",
    features=boards.FEATURES,
    target=None,
    labels=[],
    source=BOARDS,
    licence="MIT",
    scenarios=["缺陷检测"],
    links=["生产制造", "研发设计"],
    chains=["电子信息制造"],
    keywords=[*KEYWORDS, "特征", "向量", "embedding"],
    load=boards.load,
    pre=boards.pre,
    generate=boards.generate,
    split=SPLIT,
    use=Text(
        "小型卷积基础网络, 把 64×64 灰度图变成 64 维向量; 配合“图像分类 (新分类头)”或“图像异常检测”配方, 用自有图片几"
        "秒训练。",
        "A small convolutional base that turns a 64 × 64 grey picture into 64 numbers. With the recipes for a new"
        " head or"
        " for anomalies it learns your own pictures in seconds.",
    ),
    limits=Text(
        "它是小模型, 不是制造业大模型基座; 只见过裸板图像, 换到纹理差异大的图像上效果有限。" + LIMITS.zh,
        "It is a small model, no large manufacturing base model; it has seen bare boards only and helps little on"
        " pictures"
        " of another texture. " + LIMITS.en,
    ),
    entrants=[
        Entrant(
            name="pearl/board-base",
            title_zh="电路板图像基础网络 (小型)", title_en="Board-image base network (small)",
            summary_zh="小型卷积网络, 输出 64 维图像向量, 可用自有图片训练新的分类头或异常检测。",
            summary_en="A small convolutional network of 64-dimensional image vectors, to be given new heads.",
            method="convolution, 16-32-64", price=Price("images", 200_000, 150_000), fit=base, adaptable="head",
            demo_filing=True,
        ),
    ],
)  # fmt: skip
ODD = Family(
    slug="board-anomaly",
    task="anomaly-detection",
    modality="image",
    features=boards.FEATURES,
    target=Target(
        name="verdict", kind="anomaly", title_zh="是否异常", title_en="Anomaly", positive="defect",
        aliases=["结果", "是否异常", "判定", "label"],
    ),
    labels=[
        Label(name="ok", title_zh="正常", title_en="Flawless", aliases=["OK", "0", "正常", "良品", "good"]),
        Label(name="defect", title_zh="异常", title_en="Defect", aliases=["NG", "1", "异常", "缺陷", "不良"]),
    ],
    source=BOARDS,
    licence="MIT",
    scenarios=["缺陷检测"],
    links=["生产制造"],
    chains=["电子信息制造"],
    keywords=[*KEYWORDS, "异常检测"],
    load=load_odd,
    pre=boards.pre,
    generate=boards.generate,
    split=Text(
        "按电路板设计整组划分; 训练只用完好局部与绘制的缺陷, 评测用未见过板型上的真实缺陷与完好局部",
        "whole board designs to one side; learnt from flawless crops and drawn defects only, measured on real defects"
        " and"
        " flawless crops of unseen designs",
    ),
    use=Text(
        "给出局部图与完好电路板的距离与是否异常; 阈值按完好图像过杀率 5% 选定, 可用自有良品图片重新定阈值。",
        "How far a crop is from flawless boards, and whether that is odd; the threshold refuses 5% of flawless crops"
        " and"
        " can be set anew on your own good parts.",
    ),
    limits=LIMITS,
    main_metric="anomaly_auc",
    entrants=[
        Entrant(
            name="dongzhi/board-anomaly",
            title_zh="电路板异常检测", title_en="Board anomaly detection",
            summary_zh="不需要真实缺陷样本: 由完好局部的特征分布判断异常。",
            summary_en="Needs no real defects: tells what is unlike flawless crops by their embedding.",
            method="convolutional embedding, whitened distance", price=Price("images", 450_000, 180_000), fit=distance,
        ),
    ],
)  # fmt: skip
