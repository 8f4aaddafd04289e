"""Compressive strength of concrete from its mix and age (UCI 165)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters import split
from adapters.datasets import CONCRETE, read_uci
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import SEED, Entrant, Family, Parts, Price, Text, generated_columns
from adapters.samples import Samples
from model_store.manifest import Feature, Target
from model_store.step_specs import Columns, PreStep

COLUMNS = (
    ("cement", "水泥", "Cement", "kg/m³", 700.0, ["水泥用量"]),
    ("slag", "高炉矿渣", "Blast-furnace slag", "kg/m³", 500.0, ["矿渣", "矿粉", "blast_furnace_slag"]),
    ("fly_ash", "粉煤灰", "Fly ash", "kg/m³", 400.0, ["粉煤灰用量", "flyash"]),
    ("water", "水", "Water", "kg/m³", 400.0, ["用水量"]),
    ("superplasticizer", "减水剂", "Superplasticizer", "kg/m³", 60.0, ["高效减水剂", "外加剂"]),
    ("coarse_aggregate", "粗骨料", "Coarse aggregate", "kg/m³", 1500.0, ["石子", "碎石"]),
    ("fine_aggregate", "细骨料", "Fine aggregate", "kg/m³", 1500.0, ["砂", "砂子"]),
    ("age", "龄期", "Age", "d", 1000.0, ["养护天数", "龄期(天)", "days"]),
)
FEATURES = [
    Feature(name=name, kind="number", title_zh=zh, title_en=en, unit=unit, minimum=0, maximum=most, aliases=[en, *more])
    for name, zh, en, unit, most, more in COLUMNS
]


def load(data: Path) -> Parts:
    found = read_uci(data, "uci_concrete", [feature.name for feature in FEATURES])
    # The same mix was tested at several ages and sometimes twice: whole mixes go to one side.
    mixes = ["/".join(f"{row[name]:g}" for name in list(row)[:-1]) for row in found.rows]
    train, test = split.split_by_groups(mixes, SEED, 0.25)
    rows = Samples(rows=found.rows, values=np.array(found.targets))
    return Parts(rows.take(train), rows.take(test))


def pre(_: Samples) -> list[PreStep]:
    return [Columns(features=[feature.name for feature in FEATURES], tensor="features")]


FAMILY = Family(
    slug="concrete-strength",
    task="tabular-regression",
    modality="tabular",
    features=FEATURES,
    target=Target(
        name="compressive_strength", kind="number", title_zh="抗压强度", title_en="Compressive strength", unit="MPa",
        aliases=["strength", "抗压强度", "强度", "csMPa"],
    ),
    labels=[],
    source=CONCRETE,
    licence="CC-BY-4.0",
    scenarios=["参数优化"],
    links=["研发设计", "生产制造"],
    chains=["新材料"],
    keywords=["混凝土", "配方", "配合比", "强度预测", "concrete", "mix design"],
    load=load,
    pre=pre,
    generate=generated_columns(FEATURES),
    split=Text(
        "按配合比整组划分 (同一配合比的不同龄期不跨越两侧), 75% 训练, 25% 评测; 比随机划分更难, 也更真实",
        "whole mixes to one side (no mix is on both at different ages); 75% trained on, 25% measured on: harder than a"
        " random split, and truer",
    ),
    use=Text(
        "由配合比与龄期估计抗压强度, 用于试配前筛选参数, 减少试块次数。",
        "From mix and age: the compressive strength, to narrow parameters down before test cubes are cast.",
    ),
    limits=Text(
        "数据为上世纪九十年代台湾实验室试块; 材料产地、强度等级与养护条件不同时须校准。不能代替规范要求的试验。",
        "Laboratory cubes from Taiwan of the 1990s; other materials, grades and curing need calibration. It does not"
        " replace the tests that standards ask for.",
    ),
    main_metric="rmse",
    entrants=[
        Entrant(
            name="pearl/concrete-strength-ridge",
            title_zh="混凝土强度·二次岭回归", title_en="Concrete strength, quadratic ridge",
            summary_zh="由配合比与龄期估计抗压强度; 带平方与乘积项的岭回归, 极小且平滑, 适合参数寻优。",
            summary_en="Strength from mix and age by ridge regression with squares and products: tiny and smooth,"
            " good to"
            " optimise over.",
            method="quadratic ridge regression", price=Price("rows", 80_000, 40_000), fit=models.ridge(1.0, power=True),
        ),
        Entrant(
            name="dongzhi/concrete-strength-boosting",
            title_zh="混凝土强度·梯度提升", title_en="Concrete strength, gradient boosting",
            summary_zh="由配合比与龄期估计抗压强度; 梯度提升树。",
            summary_en="Strength from mix and age by gradient boosting.",
            method="gradient boosting", price=Price("rows", 260_000, 100_000),
            fit=models.boosting(rounds=300, rate=0.08, leaves=10, least=8, l2=1.0),
        ),
        Entrant(
            name="lingnan/concrete-strength-forest",
            title_zh="混凝土强度·随机森林", title_en="Concrete strength, random forest",
            summary_zh="由配合比与龄期估计抗压强度; 小型随机森林, 不外推。",
            summary_en="Strength from mix and age by a small random forest: it never extrapolates.",
            method="random forest", price=Price("rows", 200_000, 80_000),
            fit=models.forest(trees=40, depth=12, leaf=2),
        ),
    ],
)  # fmt: skip
