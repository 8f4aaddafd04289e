"""`card.md` of a starter: Hub-style front matter, then what it is, on what it was measured and where it ends, twice."""

from __future__ import annotations

from typing import Any

import yaml

from adapters.recipes.shelf.family import Entrant, Family
from model_store.manifest import Manifest, Metric

METRIC_ZH = {
    "accuracy": "准确率", "macro_f1": "宏平均"
    " F1", "f1": "F1", "auc": "AUC", "rmse": "均方根误差", "mae": "平均绝对误差",
    "r2": "决定系数", "log_loss": "对数损失", "miss_rate": "漏检率", "overkill": "过杀率", "anomaly_auc": "异常 AUC",
    "miss_rate_at_5%_overkill": "过杀率 5% 时的漏检率",
}  # fmt: skip


def card_text(family: Family, entrant: Entrant, manifest: Manifest) -> str:
    """The whole card; it says nothing that the manifest does not know."""
    front: dict[str, Any] = {
        "license": manifest.licence.lower(),
        "language": ["zh", "en"],
        "library_name": "onnx",
        "pipeline_tag": manifest.task,
        "tags": ["algomart", "algomart-starter", family.slug, *manifest.keywords],
        "datasets": [family.source.title],
    }
    train, test = manifest.data[0], manifest.data[1]
    body = [
        f"# {manifest.title_zh} · {manifest.title_en}",
        "> 演示样例: 用公开数据训练, 不计入 3/15/200, 供应商为演示组织。\n"
        "> A demonstration: trained on public data, not counted in 3/15/200, its vendor is a demonstration"
        " organisation.",
        f"## 用途\n\n{manifest.summary_zh}\n\n{family.use.zh}",
        f"## Use\n\n{manifest.summary_en}\n\n{family.use.en}",
        f"## 指标 · Metrics\n\n{_metrics(manifest.metrics)}",
        f"划分: {family.split.zh}\n\nSplit: {family.split.en}",
        "## 数据 · Data\n\n"
        f"- {family.source.title}, {family.source.url}, {family.source.licence}. {family.source.credit}\n"
        f"- 训练 trained on: {train.rows} 行 rows, 指纹 fingerprint `{train.split_fingerprint[:16]}…`\n"
        f"- 评测 measured on: {test.rows} 行 rows, 指纹 fingerprint `{test.split_fingerprint[:16]}…`\n"
        "- 包内样例与示例值均为生成值, 不是数据行。Golden samples and examples are generated, not rows of the data.",
        f"## 局限\n\n{family.limits.zh}",
        f"## Limits\n\n{family.limits.en}",
        f"## 方法 · Method\n\n{entrant.method}: `{manifest.recipe['params']}`, seed {manifest.recipe['seed']}.",
    ]
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n" + "\n\n".join(body) + "\n"


def _metrics(metrics: list[Metric]) -> str:
    if not metrics:
        return "向量模型, 无任务指标。An embedding: it has no metric of its own."
    lines = ["| 指标 | metric | 值 value | 95% | 行数 rows |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics:
        bounded = metric.low is not None and metric.high is not None
        interval = f"{metric.low:.4g} – {metric.high:.4g}" if bounded else "–"
        zh = METRIC_ZH.get(metric.name, metric.name)
        lines.append(f"| {zh} | {metric.name} | {metric.value:.4g} | {interval} | {metric.rows} |")
    return "\n".join(lines)
