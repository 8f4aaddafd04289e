"""Internal leakage of a hydraulic pump from one load cycle of ten sensors (UCI 447)."""

from __future__ import annotations

from pathlib import Path

from adapters import split
from adapters.datasets import HYDRAULIC, HYDRAULIC_SENSORS, read_hydraulic
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import SEED, Entrant, Family, Parts, Price, Text, generated_columns
from adapters.samples import Samples
from model_store.manifest import Feature, Label, Target
from model_store.step_specs import Columns, PreStep

SENSORS = {
    "TS1": ("温度 TS1", "Temperature TS1", "°C"),
    "TS2": ("温度 TS2", "Temperature TS2", "°C"),
    "TS3": ("温度 TS3", "Temperature TS3", "°C"),
    "TS4": ("温度 TS4", "Temperature TS4", "°C"),
    "VS1": ("振动 VS1", "Vibration VS1", "mm/s"),
    "CE": ("冷却效率 CE", "Cooling efficiency CE", "%"),
    "CP": ("冷却功率 CP", "Cooling power CP", "kW"),
    "SE": ("效率因子 SE", "Efficiency factor SE", "%"),
    "FS1": ("流量 FS1", "Volume flow FS1", "L/min"),
    "FS2": ("流量 FS2", "Volume flow FS2", "L/min"),
}
STATISTICS = {
    "mean": ("均值", "mean"),
    "std": ("标准差", "deviation"),
    "slope": ("周期内变化", "change over the cycle"),
}
FEATURES = [
    Feature(
        name=f"{sensor.lower()}_{statistic}", kind="number", title_zh=f"{SENSORS[sensor][0]} {zh}",
        title_en=f"{SENSORS[sensor][1]}, {en}", unit=SENSORS[sensor][2],
        aliases=[f"{sensor}_{zh}", f"{sensor} {statistic}"],
    )
    for sensor in HYDRAULIC_SENSORS
    for statistic, (zh, en) in STATISTICS.items()
]  # fmt: skip


def load(data: Path) -> Parts:
    found = read_hydraulic(data, "pump")
    train, test = split.split_by_groups(found.groups, SEED, 0.25)
    rows = Samples(rows=found.rows, labels=found.targets, groups=found.groups)
    return Parts(rows.take(train), rows.take(test))


def pre(_: Samples) -> list[PreStep]:
    return [Columns(features=[feature.name for feature in FEATURES], tensor="features")]


FAMILY = Family(
    slug="pump-leakage",
    task="tabular-classification",
    modality="tabular",
    features=FEATURES,
    target=Target(
        name="pump_leakage", kind="category", title_zh="泵内泄漏", title_en="Internal pump leakage",
        aliases=["内泄漏", "泵状态", "泵内泄漏", "pump", "leakage"],
    ),
    labels=[
        Label(name="none", title_zh="无泄漏", title_en="No leakage", aliases=["0", "无", "正常"]),
        Label(name="weak", title_zh="轻微泄漏", title_en="Weak leakage", aliases=["1", "轻微", "弱"]),
        Label(name="severe", title_zh="严重泄漏", title_en="Severe leakage", aliases=["2", "严重"]),
    ],
    source=HYDRAULIC,
    licence="CC-BY-4.0",
    scenarios=["预测性维护"],
    links=["运维服务", "生产制造"],
    chains=["高端装备制造"],
    keywords=["液压", "泵", "内泄漏", "状态监测", "hydraulic", "condition monitoring"],
    load=load,
    pre=pre,
    generate=generated_columns(FEATURES),
    split=Text(
        "按四个部件状态的组合整组划分, 75% 训练, 25% 评测: 评测组合从未训练过。周期按时间相邻, 随机划分会虚高",
        "whole combinations of the four components' states to one side, 75% trained on, 25% measured on: no combination"
        " measured was learnt from. Cycles follow each other in time, so a random split would flatter",
    ),
    use=Text(
        "由一个 60 秒负载周期内十个传感器的均值、标准差与变化, 判断液压泵的内泄漏程度。",
        "From mean, deviation and change of ten sensors over one load cycle of 60 s: how badly the pump leaks inside.",
    ),
    limits=Text(
        "来自一台试验台; 原数据的压力传感器不在其中。须按相同工况循环采集并先算好统计量。",
        "One test rig, without its pressure sensors. Cycles must be recorded alike and reduced to these statistics"
        " first.",
    ),
    main_metric="macro_f1",
    entrants=[
        Entrant(
            name="lingnan/pump-leakage-linear",
            title_zh="液压泵内泄漏·线性", title_en="Pump leakage, linear",
            summary_zh="由十个传感器的周期统计量判断泵内泄漏三级状态; 逻辑回归, 极小。",
            summary_en="Three grades of pump leakage from statistics of ten sensors by logistic regression: tiny.",
            method="logistic regression", price=Price("rows", 90_000, 45_000), fit=models.logistic(1.0),
        ),
        Entrant(
            name="pearl/pump-leakage-forest",
            title_zh="液压泵内泄漏·随机森林", title_en="Pump leakage, random forest",
            summary_zh="由十个传感器的周期统计量判断泵内泄漏三级状态; 小型随机森林。",
            summary_en="Three grades of pump leakage from statistics of ten sensors by a small random forest.",
            method="random forest", price=Price("rows", 220_000, 90_000), fit=models.forest(trees=40, depth=8, leaf=2),
        ),
        Entrant(
            name="dongzhi/pump-leakage-boosting",
            title_zh="液压泵内泄漏·梯度提升", title_en="Pump leakage, gradient boosting",
            summary_zh="由十个传感器的周期统计量判断泵内泄漏三级状态; 梯度提升树。",
            summary_en="Three grades of pump leakage from statistics of ten sensors by gradient boosting.",
            method="gradient boosting", price=Price("rows", 300_000, 120_000),
            fit=models.boosting(rounds=80, rate=0.1, leaves=8, least=20, l2=1.0),
        ),
    ],
)  # fmt: skip
