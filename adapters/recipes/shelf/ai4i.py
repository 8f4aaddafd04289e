"""Machine failure of a milling machine from five readings (AI4I 2020, synthetic)."""

from __future__ import annotations

from pathlib import Path

from adapters import split
from adapters.datasets import AI4I, read_ai4i
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import SEED, Entrant, Family, Parts, Price, Text, generated_columns
from adapters.samples import Samples
from model_store.manifest import Feature, Label, Target
from model_store.step_specs import Categories, Columns, PreStep

FEATURES = [
    Feature(
        name="product_type", kind="category", title_zh="产品等级", title_en="Product quality variant",
        categories=["L", "M", "H"], aliases=["Type", "产品类型", "质量等级", "产品型号等级"], example="M",
    ),
    Feature(
        name="air_temperature", kind="number", title_zh="环境温度", title_en="Air temperature", unit="K",
        minimum=250, maximum=350, aliases=["Air temperature [K]", "空气温度", "环境温度[K]", "气温"],
    ),
    Feature(
        name="process_temperature", kind="number", title_zh="过程温度", title_en="Process temperature", unit="K",
        minimum=250, maximum=400, aliases=["Process temperature [K]", "加工温度", "工艺温度", "过程温度[K]"],
    ),
    Feature(
        name="rotational_speed", kind="number", title_zh="转速", title_en="Rotational speed", unit="rpm",
        minimum=0, maximum=10000, aliases=["Rotational speed [rpm]", "主轴转速", "转速[rpm]", "speed"],
    ),
    Feature(
        name="torque", kind="number", title_zh="扭矩", title_en="Torque", unit="N·m",
        minimum=0, maximum=500, aliases=["Torque [Nm]", "转矩", "扭矩[Nm]", "力矩"],
    ),
    Feature(
        name="tool_wear", kind="number", title_zh="刀具磨损时间", title_en="Tool wear", unit="min",
        minimum=0, maximum=1000, aliases=["Tool wear [min]", "刀具磨损", "刀具使用时间", "磨损时间[min]"],
    ),
]  # fmt: skip


def load(data: Path) -> Parts:
    found = read_ai4i(data)
    train, test = split.split_by_labels(found.targets, SEED, 0.25)
    rows = Samples(rows=found.rows, labels=found.targets)
    return Parts(rows.take(train), rows.take(test))


def pre(_: Samples) -> list[PreStep]:
    return [
        Categories(feature="product_type", mapping={"L": 0.0, "M": 1.0, "H": 2.0}),
        Columns(features=[feature.name for feature in FEATURES], tensor="features"),
    ]


FAMILY = Family(
    slug="machine-failure",
    task="tabular-classification",
    modality="tabular",
    features=FEATURES,
    target=Target(
        name="machine_failure", kind="category", title_zh="是否故障", title_en="Machine failure", positive="failure",
        aliases=["Machine failure", "故障", "设备故障", "是否故障", "failure"],
    ),
    labels=[
        Label(name="ok", title_zh="正常", title_en="No failure", aliases=["0", "正常", "否", "no"]),
        Label(name="failure", title_zh="故障", title_en="Failure", aliases=["1", "故障", "是", "yes"]),
    ],
    source=AI4I,
    licence="CC-BY-4.0",
    scenarios=["预测性维护", "精密加工"],
    links=["运维服务", "生产制造"],
    chains=["高端装备制造"],
    keywords=["铣床", "刀具", "故障预测", "CNC", "milling", "predictive maintenance"],
    load=load,
    pre=pre,
    generate=generated_columns(FEATURES),
    split=Text("按标签分层随机划分, 75% 训练, 25% 评测", "random, stratified by label; 75% trained on, 25% measured"
    " on"),
    use=Text(
        "由铣床的温度、转速、扭矩与刀具磨损判断本次加工是否会发生设备故障, 供停机检查或换刀决策参考。",
        "From temperatures, speed, torque and tool wear of a milling machine: will it fail? A hint for checks and tool"
        " changes.",
    ),
    limits=Text(
        "数据是按真实铣床模拟生成的 (10,000 行, 339 次故障), 不是实采数据; 用于自家机床前请先用自有样本选型或再训练。"
        "随机故障 (RNF) 无法由这些读数预测。",
        "The data is simulated after a real milling machine (10,000 rows, 339 failures), not recorded from one:"
        " choose or"
        " retrain on your own rows first. Random failures (RNF) cannot be told from these readings.",
    ),
    main_metric="f1",
    entrants=[
        Entrant(
            name="lingnan/machine-failure-linear",
            title_zh="铣床故障预警·线性", title_en="Milling failure, linear",
            summary_zh="由产品等级与五个读数判断铣床是否故障; 逻辑回归, 体积最小, 可作基线。",
            summary_en="Milling-machine failure from grade and five readings by logistic regression: the smallest, a"
            " baseline.",
            method="logistic regression", price=Price("rows", 120_000, 60_000), fit=models.logistic(1.0),
        ),
        Entrant(
            name="dongzhi/machine-failure-boosting",
            title_zh="铣床故障预警·梯度提升", title_en="Milling failure, gradient boosting",
            summary_zh="由产品等级与五个读数判断铣床是否故障; 梯度提升树。",
            summary_en="Milling-machine failure from grade and five readings by gradient boosting.",
            method="gradient boosting", price=Price("rows", 370_000, 150_000),
            fit=models.boosting(rounds=120, rate=0.08, leaves=12, least=12, l2=1.0), demo_filing=True,
        ),
        Entrant(
            name="pearl/machine-failure-forest",
            title_zh="铣床故障预警·随机森林", title_en="Milling failure, random forest",
            summary_zh="由产品等级与五个读数判断铣床是否故障; 小型随机森林。",
            summary_en="Milling-machine failure from grade and five readings by a small random forest.",
            method="random forest", price=Price("rows", 300_000, 120_000),
            fit=models.forest(trees=60, depth=10, leaf=3),
        ),
        Entrant(
            name="lingnan/machine-failure-network",
            title_zh="铣床故障预警·神经网络", title_en="Milling failure, neural network",
            summary_zh="由产品等级与五个读数判断铣床是否故障; 两层小型神经网络, 体积小。",
            summary_en="Milling-machine failure from grade and five readings by a small neural network: compact.",
            method="neural network", price=Price("rows", 200_000, 90_000),
            fit=models.perceptron((32, 16), epochs=400, rate=5e-3),
        ),
    ],
)  # fmt: skip
