"""Seven kinds of surface fault of steel plates from 27 measured features of the flaw (UCI 198)."""

from __future__ import annotations

from pathlib import Path

from adapters import split
from adapters.datasets import STEEL, read_steel
from adapters.recipes.shelf import models
from adapters.recipes.shelf.family import SEED, Entrant, Family, Parts, Price, Text, generated_columns
from adapters.samples import Samples
from model_store.manifest import Feature, Label, Target
from model_store.step_specs import Columns, PreStep

# name, heading as published, zh, en, unit
COLUMNS = (
    ("x_minimum", "X_Minimum", "缺陷左边界", "Left edge of the flaw", "px"),
    ("x_maximum", "X_Maximum", "缺陷右边界", "Right edge of the flaw", "px"),
    ("y_minimum", "Y_Minimum", "缺陷上边界", "Upper edge of the flaw", "px"),
    ("y_maximum", "Y_Maximum", "缺陷下边界", "Lower edge of the flaw", "px"),
    ("pixels_areas", "Pixels_Areas", "缺陷面积", "Area of the flaw", "px²"),
    ("x_perimeter", "X_Perimeter", "横向周长", "Perimeter along X", "px"),
    ("y_perimeter", "Y_Perimeter", "纵向周长", "Perimeter along Y", "px"),
    ("sum_of_luminosity", "Sum_of_Luminosity", "亮度总和", "Sum of luminosity", "1"),
    ("minimum_of_luminosity", "Minimum_of_Luminosity", "最低亮度", "Least luminosity", "1"),
    ("maximum_of_luminosity", "Maximum_of_Luminosity", "最高亮度", "Greatest luminosity", "1"),
    ("length_of_conveyer", "Length_of_Conveyer", "输送带长度", "Length of the conveyer", "1"),
    ("typeofsteel_a300", "TypeOfSteel_A300", "钢种 A300", "Steel type A300", "1"),
    ("typeofsteel_a400", "TypeOfSteel_A400", "钢种 A400", "Steel type A400", "1"),
    ("steel_plate_thickness", "Steel_Plate_Thickness", "钢板厚度", "Plate thickness", "1"),
    ("edges_index", "Edges_Index", "边缘指数", "Edges index", "1"),
    ("empty_index", "Empty_Index", "空白指数", "Empty index", "1"),
    ("square_index", "Square_Index", "方形指数", "Square index", "1"),
    ("outside_x_index", "Outside_X_Index", "横向外部指数", "Outside X index", "1"),
    ("edges_x_index", "Edges_X_Index", "横向边缘指数", "Edges X index", "1"),
    ("edges_y_index", "Edges_Y_Index", "纵向边缘指数", "Edges Y index", "1"),
    ("outside_global_index", "Outside_Global_Index", "整体外部指数", "Outside global index", "1"),
    ("logofareas", "LogOfAreas", "面积对数", "Logarithm of the area", "1"),
    ("log_x_index", "Log_X_Index", "横向对数指数", "Log X index", "1"),
    ("log_y_index", "Log_Y_Index", "纵向对数指数", "Log Y index", "1"),
    ("orientation_index", "Orientation_Index", "方向指数", "Orientation index", "1"),
    ("luminosity_index", "Luminosity_Index", "亮度指数", "Luminosity index", "1"),
    ("sigmoidofareas", "SigmoidOfAreas", "面积 S 型值", "Sigmoid of the area", "1"),
)
FEATURES = [
    Feature(name=name, kind="number", title_zh=zh, title_en=en, unit=unit, aliases=[heading, zh])
    for name, heading, zh, en, unit in COLUMNS
]
LABELS = [
    Label(name="pastry", title_zh="粘结斑", title_en="Pastry", aliases=["Pastry", "粘结斑"]),
    Label(name="z_scratch", title_zh="Z 向划伤", title_en="Z scratch", aliases=["Z_Scratch", "Z划伤"]),
    Label(name="k_scratch", title_zh="K 向划伤", title_en="K scratch", aliases=["K_Scatch", "K_Scratch", "K划伤"]),
    Label(name="stains", title_zh="污渍", title_en="Stains", aliases=["Stains", "污渍"]),
    Label(name="dirtiness", title_zh="脏污", title_en="Dirtiness", aliases=["Dirtiness", "脏污"]),
    Label(name="bumps", title_zh="凸起", title_en="Bumps", aliases=["Bumps", "凸起", "凹凸"]),
    Label(name="other", title_zh="其他缺陷", title_en="Other faults", aliases=["Other_Faults", "其他"]),
]


def load(data: Path) -> Parts:
    found = read_steel(data)
    train, test = split.split_by_labels(found.targets, SEED, 0.25)
    rows = Samples(rows=found.rows, labels=found.targets)
    return Parts(rows.take(train), rows.take(test))


def pre(_: Samples) -> list[PreStep]:
    return [Columns(features=[feature.name for feature in FEATURES], tensor="features")]


FAMILY = Family(
    slug="steel-plate-faults",
    task="tabular-classification",
    modality="tabular",
    features=FEATURES,
    target=Target(
        name="fault", kind="category", title_zh="缺陷类型", title_en="Fault",
        aliases=["缺陷", "缺陷类型", "缺陷类别", "fault_type", "defect"],
    ),
    labels=LABELS,
    source=STEEL,
    licence="CC-BY-4.0",
    scenarios=["缺陷检测"],
    links=["生产制造"],
    chains=["新材料"],
    keywords=["钢板", "表面缺陷", "划伤", "质检", "steel", "surface faults"],
    load=load,
    pre=pre,
    generate=generated_columns(FEATURES),
    split=Text("按标签分层随机划分, 75% 训练, 25% 评测", "random, stratified by label; 75% trained on, 25% measured"
    " on"),
    use=Text(
        "视觉系统已分割出缺陷并算出 27 个几何与亮度特征后, 判断缺陷属于七类中的哪一类。",
        "After a vision system has cut out a flaw and computed 27 features of shape and luminosity: which of seven"
        " kinds"
        " is it?",
    ),
    limits=Text(
        "特征取自一条钢板产线; 换相机、分辨率或钢种后特征分布会变。“其他缺陷”是杂类, 与凸起最易混淆。",
        "The features come from one plate line; another camera, resolution or steel shifts them. “Other faults” is a"
        " mixed"
        " bag, most easily confused with bumps.",
    ),
    main_metric="macro_f1",
    entrants=[
        Entrant(
            name="dongzhi/steel-faults-boosting",
            title_zh="钢板表面缺陷分类·梯度提升", title_en="Steel-plate faults, gradient boosting",
            summary_zh="由 27 个特征判断钢板表面缺陷的七个类别; 梯度提升树。",
            summary_en="Seven kinds of steel-plate surface fault from 27 features by gradient boosting.",
            method="gradient boosting", price=Price("rows", 400_000, 160_000),
            fit=models.boosting(rounds=90, rate=0.1, leaves=12, least=8, l2=1.0),
        ),
        Entrant(
            name="pearl/steel-faults-forest",
            title_zh="钢板表面缺陷分类·随机森林", title_en="Steel-plate faults, random forest",
            summary_zh="由 27 个特征判断钢板表面缺陷的七个类别; 随机森林。",
            summary_en="Seven kinds of steel-plate surface fault from 27 features by a random forest.",
            method="random forest", price=Price("rows", 320_000, 130_000),
            fit=models.forest(trees=50, depth=12, leaf=2),
        ),
        Entrant(
            name="lingnan/steel-faults-linear",
            title_zh="钢板表面缺陷分类·线性", title_en="Steel-plate faults, linear",
            summary_zh="由 27 个特征判断钢板表面缺陷的七个类别; 多项逻辑回归, 体积最小。",
            summary_en="Seven kinds of steel-plate surface fault from 27 features by multinomial logistic regression:"
            " the smallest.",
            method="logistic regression", price=Price("rows", 90_000, 45_000), fit=models.logistic(10.0, exact=True),
        ),
        Entrant(
            name="lingnan/steel-faults-network",
            title_zh="钢板表面缺陷分类·神经网络", title_en="Steel-plate faults, neural network",
            summary_zh="由 27 个特征判断钢板表面缺陷的七个类别; 小型神经网络, 体积小。",
            summary_en="Seven kinds of steel-plate surface fault from 27 features by a small neural network.",
            method="neural network", price=Price("rows", 180_000, 80_000),
            fit=models.perceptron((64, 32), epochs=400, alpha=1e-3),
        ),
    ],
)  # fmt: skip
