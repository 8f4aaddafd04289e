"""How long a search takes over 10,000 listings: `python -m tests.bench.bench_search`."""

from __future__ import annotations

import json
import random
import time

from marketplace.catalogue.labels import LINKS, MODALITIES, SCENARIOS, TASKS
from marketplace.catalogue.search import Document, SearchIndex

THINGS = {
    "轴承": "bearing", "钢板": "steel plate", "液压": "hydraulic", "发动机": "engine", "电路板": "pcb", "工单": "order",
    "能耗": "energy", "焊接": "solder", "刀具": "tool", "混凝土": "concrete", "半导体": "wafer", "注塑": "moulding",
    "电池": "battery", "齿轮": "gear", "玻璃": "glass", "纺织": "textile", "家具": "furniture", "风机": "fan",
}  # fmt: skip
ASPECTS = ["故障", "寿命", "缺陷", "质检", "强度", "磨损", "异常", "预测", "分类", "优化"]
QUERIES = [
    "轴承 故障",
    "轴承故障诊断",
    "缺陷",
    "发动机还能用多久",
    "bearing fault",
    "bear",
    "液压系统 异常 sensor",
    "产线",
    "",
]


def documents(count: int, seed: int = 7) -> list[Document]:
    """Made-up but plausible listings, the same for the same seed."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        thing, english = chance.choice(list(THINGS.items()))
        aspect, other = chance.sample(ASPECTS, 2)
        vendor = f"vendor{number % 97}"
        made.append(
            Document(
                listing_id=f"lst_{number}",
                owner=f"org_{number % 97}",
                listed=True,
                fields=[
                    (f"{vendor}/{english.replace(' ', '-')}-{number}", 5.0),
                    (f"{thing}{aspect}模型 {number}", 6.0),
                    (f"{english} model", 6.0),
                    (f"用于{thing}的{aspect}与{other}识别, 支持表格与传感器时间序列, 在产线上验证", 2.0),
                    (f"Detects and predicts the condition of {english} from sensors in production", 2.0),
                ],
                facets=[
                    ("tier", "small"),
                    ("vendor", vendor),
                    ("task", chance.choice(list(TASKS))),
                    ("modality", chance.choice(list(MODALITIES))),
                    ("link", chance.choice(list(LINKS))),
                    ("scenario", chance.choice(list(SCENARIOS))),
                    ("chain", thing),
                    ("family", f"family{number % 50}"),
                ],
                card={"name": f"{vendor}/{number}"},
                price_micro=number,
                created_at_ms=number,
            )
        )
    return made


def bench_search(count: int = 10_000, repeats: int = 20) -> dict[str, object]:
    """Milliseconds per query, median and worst of `repeats`, with one facet ticked and all facets counted."""
    index = SearchIndex()
    began = time.perf_counter()
    index.rebuild(documents(count))
    build_ms = (time.perf_counter() - began) * 1000
    rows = {}
    for text in QUERIES:
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            found = index.search(text, filters={"tier": ["small"]})
            took.append((time.perf_counter() - began) * 1000)
        took.sort()
        rows[text] = {"hits": found.total, "median_ms": round(took[len(took) // 2], 2), "worst_ms": round(took[-1], 2)}
    return {"listings": count, "build_ms": round(build_ms), "queries": rows}


if __name__ == "__main__":
    print(json.dumps(bench_search(), ensure_ascii=False, indent=1))
