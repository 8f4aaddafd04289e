"""Full-load electrical output of a combined-cycle power plant from the weather and the condenser (UCI 294)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters.datasets import POWER, read_fixed_split, read_uci
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import Entrant, Family, Parts, Price, Text, generated_columns
from adapters.samples import Samples
from model_store.manifest import Feature, Target
from model_store.step_specs import Columns, PreStep

FEATURES = [
    Feature(
        name="ambient_temperature", kind="number", title_zh="环境温度", title_en="Ambient temperature", unit="°C",
        minimum=-40, maximum=60, aliases=["AT", "T", "环境温度", "气温", "Temperature"],
    ),
    Feature(
        name="exhaust_vacuum", kind="number", title_zh="排汽真空", title_en="Exhaust vacuum", unit="cmHg",
        minimum=0, maximum=120, aliases=["V", "排汽真空", "凝汽器真空", "真空度"],
    ),
    Feature(
        name="ambient_pressure", kind="number", title_zh="大气压力", title_en="Ambient pressure", unit="mbar",
        minimum=800, maximum=1100, aliases=["AP", "大气压", "气压", "大气压力"],
    ),
    Feature(
        name="relative_humidity", kind="number", title_zh="相对湿度", title_en="Relative humidity", unit="%",
        minimum=0, maximum=110, aliases=["RH", "湿度", "相对湿度"],
    ),
]  # fmt: skip


def load(data: Path) -> Parts:
    found = read_uci(data, "uci_power_plant", [feature.name for feature in FEATURES])
    train, test = read_fixed_split(data, "uci_power_plant")
    rows = Samples(rows=found.rows, values=np.array(found.targets))
    seen = {tuple(rows.rows[place].values()) for place in train}  # the set repeats some rows: none of them is measured
    return Parts(rows.take(train), rows.take([place for place in test if tuple(rows.rows[place].values()) not in seen]))


def pre(_: Samples) -> list[PreStep]:
    return [Columns(features=[feature.name for feature in FEATURES], tensor="features")]


FAMILY = Family(
    slug="plant-full-load",
    task="tabular-regression",
    modality="tabular",
    features=FEATURES,
    target=Target(
        name="full_load_power", kind="number", title_zh="满负荷发电功率", title_en="Full-load power", unit="MW",
        aliases=["PE", "EP", "发电功率", "净输出功率", "功率"],
    ),
    labels=[],
    source=POWER,
    licence="CC-BY-4.0",
    scenarios=["智慧能源管理"],
    links=["生产制造", "运维服务"],
    chains=[],
    keywords=["发电", "负荷预测", "能耗", "联合循环", "power plant", "energy"],
    load=load,
    pre=pre,
    generate=generated_columns(FEATURES),
    split=Text(
        "公开的固定划分 0 (90% 训练, 10% 评测); 与训练行重复的评测行已剔除",
        "published fixed split 0 (90% trained on, 10% measured on); test rows that repeat a training row are left out",
    ),
    use=Text(
        "由天气与凝汽器真空估计联合循环机组的满负荷发电功率, 用于次日电量计划与机组状态对照。",
        "From the weather and the condenser's vacuum: the full-load output of a combined-cycle plant, for day-ahead"
        " plans"
        " and as a yardstick of its condition.",
    ),
    limits=Text(
        "仅来自一台 480 MW 级联合循环机组满负荷运行的小时均值; 其他机组须用自有数据校准或再训练。",
        "Hourly means of one 480 MW combined-cycle unit at full load; another unit needs calibration or retraining.",
    ),
    main_metric="rmse",
    entrants=[
        Entrant(
            name="lingnan/plant-load-linear",
            title_zh="机组满负荷功率·线性", title_en="Plant full load, linear",
            summary_zh="由四个气象与真空读数估计满负荷功率; 岭回归, 可逐项解释。",
            summary_en="Full-load power from four readings by ridge regression: every coefficient can be read.",
            method="ridge regression", price=Price("rows", 60_000, 30_000), fit=models.ridge(1.0),
        ),
        Entrant(
            name="dongzhi/plant-load-boosting",
            title_zh="机组满负荷功率·梯度提升", title_en="Plant full load, gradient boosting",
            summary_zh="由四个气象与真空读数估计满负荷功率; 梯度提升树。",
            summary_en="Full-load power from four readings by gradient boosting.",
            method="gradient boosting", price=Price("rows", 280_000, 110_000),
            fit=models.boosting(rounds=250, rate=0.1, leaves=31, least=15, l2=1.0),
        ),
        Entrant(
            name="pearl/plant-load-network",
            title_zh="机组满负荷功率·神经网络", title_en="Plant full load, neural network",
            summary_zh="由四个气象与真空读数估计满负荷功率; 小型神经网络, 输出平滑, 体积小。",
            summary_en="Full-load power from four readings by a small neural network: smooth and compact.",
            method="neural network", price=Price("rows", 150_000, 70_000),
            fit=models.perceptron((32, 32), epochs=300, alpha=1e-5),
        ),
    ],
)  # fmt: skip
