"""Which system of an excavator a maintenance work order is about, from its short text (NIST nestor)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adapters import split
from adapters.datasets import ORDERS, read_orders
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import SEED, Entrant, Family, Parts, Price, Row, Text
from adapters.samples import Samples
from model_store.manifest import Feature, Label, Target
from model_store.step_specs import HashNgrams, PreStep

LEAST_ROWS = 25  # a system with fewer orders cannot be measured
SYSTEMS = {
    "Hydraulic System": ("液压系统", "Hydraulic system"),
    "Bucket": ("铲斗", "Bucket"),
    "Engine": ("发动机", "Engine"),
    "Superstructure": ("上部结构", "Superstructure"),
    "Hydraulic Cylinders": ("液压缸", "Hydraulic cylinders"),
    "Final Drive": ("终传动", "Final drive"),
    "Induction and Exhaust": ("进排气", "Induction and exhaust"),
    "Radiator": ("散热器", "Radiator"),
}
FEATURES = [
    Feature(
        name="text", kind="text", title_zh="工单描述", title_en="Work-order"
        " text", example="REPLACE LEAKING HYDRAULIC HOSE",
        aliases=["工单", "描述", "工单描述", "OriginalShorttext", "short_text", "description", "故障描述"],
    )
]  # fmt: skip
PHRASES = (
    ("replace", "repair", "inspect", "change out", "check", "refit"),
    ("leaking", "broken", "worn", "cracked", "loose", "noisy"),
    ("hydraulic hose", "bucket tooth", "engine oil filter", "radiator cap", "boom cylinder seal", "final drive guard"),
    ("L/H", "R/H", "front", "rear", ""),
)


def load(data: Path) -> Parts:
    """Orders of one known system, each text once; a text that stands under two systems is left out."""
    found = read_orders(data)
    systems: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for at, (row, system) in enumerate(zip(found.rows, found.targets, strict=True)):
        if system in SYSTEMS and (key := plain(row["text"])):
            systems.setdefault(key, set()).add(system)
            first.setdefault(key, at)
    kept = [first[key] for key in first if len(systems[key]) == 1]
    counts = Counter(found.targets[at] for at in kept)
    kept = [at for at in kept if counts[found.targets[at]] >= LEAST_ROWS]
    rows = Samples(rows=[found.rows[at] for at in kept], labels=[found.targets[at] for at in kept])
    train, test = split.split_by_labels(rows.labels, SEED, 0.25)
    return Parts(rows.take(train), rows.take(test))


def plain(text: str) -> str:
    """Letters and digits only: texts that differ in case, spaces or stops are the same text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def ngrams(unit: str, low: int, high: int, buckets: int) -> Callable[[Samples], list[PreStep]]:
    def steps(_: Samples) -> list[PreStep]:
        step = {"feature": "text", "tensor": "ngrams", "unit": unit, "low": low, "high": high, "buckets": buckets}
        return [HashNgrams.model_validate(step)]

    return steps


def generate(random: np.random.Generator, count: int, _: Samples) -> list[Row]:
    """Made-up orders from common words of the trade."""
    rows: list[Row] = []
    for _number in range(count):
        verb, state, part, side = (str(random.choice(words)) for words in PHRASES)
        rows.append({"text": " ".join(f"{verb} {state} {side} {part}".split())})
    return rows


FAMILY = Family(
    slug="work-order-system",
    task="text-classification",
    modality="text",
    features=FEATURES,
    target=Target(
        name="system", kind="category", title_zh="所属系统", title_en="Major system",
        aliases=["系统", "所属系统", "MajorSystem", "major_system", "部位"],
    ),
    labels=[Label(name=name, title_zh=zh, title_en=en, aliases=[zh]) for name, (zh, en) in SYSTEMS.items()],
    source=ORDERS,
    licence="Apache-2.0",
    scenarios=["工单/合同生成"],
    links=["运维服务", "经营管理"],
    chains=["高端装备制造"],
    keywords=["工单", "派工", "维修", "文本分类", "work order", "maintenance"],
    load=load,
    pre=ngrams("char", 2, 4, 4096),
    generate=generate,
    split=Text(
        "相同文本只保留一条, 再按标签分层随机划分, 75% 训练, 25% 评测",
        "each text once, then random, stratified by label; 75% trained on, 25% measured on",
    ),
    use=Text(
        "读取英文维修工单的短描述, 自动填写“所属系统”字段, 用于生成规范工单与派工。",
        "Reads the short text of an English work order and fills in its system, so that orders can be completed and"
        " dispatched.",
    ),
    limits=Text(
        "仅有五台矿用挖掘机的英文工单; 中文工单请用“文本分类 (字符 n 元组)”配方以自有工单训练。标签由 NIST 的规则清洗"
        "得到, 含有规则的偏向: "
        "描述中写明部件名的工单更容易判断。",
        "English orders of five mining excavators; for Chinese orders train the n-gram recipe on your own. The labels"
        " come"
        " from NIST's cleaning rules and share their bias: orders that name the part are the easy ones.",
    ),
    main_metric="macro_f1",
    entrants=[
        Entrant(
            name="lingnan/work-order-words",
            title_zh="工单所属系统·词", title_en="Work-order system, words",
            summary_zh="由工单短描述判断所属系统; 散列词一、二元组加逻辑回归, 体积最小。",
            summary_en="The system of a work order from hashed words and pairs of words: the smallest.",
            method="hashed word n-grams, logistic regression", price=Price("calls", 200_000, 90_000),
            fit=models.logistic(20.0), pre=ngrams("word", 1, 2, 2048),
        ),
        Entrant(
            name="dongzhi/work-order-characters",
            title_zh="工单所属系统·字符", title_en="Work-order system, characters",
            summary_zh="由工单短描述判断所属系统; 散列字符 2–4 元组加逻辑回归, 错拼与缩写的词仍有部分字符相同。",
            summary_en="The system of a work order from hashed runs of 2 to 4 characters: a misspelt word still shares"
            " most of them.",
            method="hashed character n-grams, logistic regression", price=Price("calls", 370_000, 150_000),
            fit=models.logistic(20.0), pre=ngrams("char", 2, 4, 8192), demo_filing=True,
        ),
        Entrant(
            name="pearl/work-order-network",
            title_zh="工单所属系统·神经网络", title_en="Work-order system, neural network",
            summary_zh="由工单短描述判断所属系统; 散列字符元组加一层小型神经网络。",
            summary_en="The system of a work order from hashed characters by a small neural network.",
            method="hashed character n-grams, neural network", price=Price("calls", 300_000, 120_000),
            fit=models.perceptron((32,), epochs=60, alpha=1e-3, rate=2e-3), pre=ngrams("char", 2, 4, 4096),
        ),
    ],
)  # fmt: skip
