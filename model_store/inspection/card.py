"""The card: whether a manifest tells a factory what it needs to know. Errors for a public version, advice for a
private one.

Pure: it reads the manifest only, so a client may run it before anything is uploaded.
"""

from __future__ import annotations

from pathlib import Path

from model_store.inspection.report import Findings, Severity
from model_store.manifest import Feature, Manifest

_MAX_NAMED = 8


def check_card(manifest: Manifest, root: Path | None, private: bool, findings: Findings) -> None:
    """Judge the manifest's description, data, features, parent and filing. `root`: also look for card.md."""
    card = _Card(findings, "advice" if private else "error")
    _check_texts(manifest, card)
    _check_features(manifest, card)
    _check_answers(manifest, card)
    _check_data(manifest, card)
    _check_parent(manifest, card)
    _check_filing(manifest, card)
    if root is not None and not (root / "card.md").is_file():
        card.softer(
            "CARD_MISSING",
            "没有 card.md",
            "there is no card.md",
            "请写明用途、数据、指标与局限",
            "describe use, data, metrics and limits there",
            "card.md",
        )


class _Card:
    """Findings of the card with the severity that fits the version's visibility."""

    def __init__(self, findings: Findings, severity: Severity) -> None:
        self._findings = findings
        self._severity: Severity = severity

    def say(self, code: str, zh: str, en: str, fix_zh: str, fix_en: str, where: str) -> None:
        self._findings.add(code, self._severity, zh, en, fix_zh, fix_en, where)

    def softer(self, code: str, zh: str, en: str, fix_zh: str, fix_en: str, where: str) -> None:
        softer: Severity = "warning" if self._severity == "error" else "advice"
        self._findings.add(code, softer, zh, en, fix_zh, fix_en, where)


def _check_texts(manifest: Manifest, card: _Card) -> None:
    for field, zh in (
        ("title_zh", "中文名称"),
        ("title_en", "英文名称"),
        ("summary_zh", "中文简介"),
        ("summary_en", "英文简介"),
    ):
        if not getattr(manifest, field).strip():
            card.say(
                "CARD_FIELD_MISSING",
                f"缺少{zh}",
                f"{field} is missing",
                f"请在 manifest.json 填写 {field}",
                f"fill in {field} in manifest.json",
                f"manifest.{field}",
            )
    if not manifest.licence.strip():
        card.say(
            "CARD_LICENCE_MISSING",
            "没有许可证",
            "there is no licence",
            "请填写 SPDX 标识, 例如 Apache-2.0, 或自有许可证名称",
            "name an SPDX identifier such as Apache-2.0, or your own licence",
            "manifest.licence",
        )
    if not manifest.scenarios and not manifest.links:
        card.say(
            "CARD_SCENARIO_MISSING",
            "没有应用场景或环节",
            "neither a scenario nor a link of the chain is named",
            "请至少填写一个 scenarios (如 缺陷检测) 或 links (如 生产制造), 工厂据此查找",
            "name at least one of scenarios or links: factories search by them",
            "manifest.scenarios",
        )
    if manifest.task == "tensor":
        card.say(
            "CARD_TASK_MISSING",
            "任务类型是裸张量, 工厂无法按具名特征使用",
            'the task is "tensor": a factory could not use it with named features',
            "请填写 task、features 与前后处理",
            "state task, features, and pre- and post-processing",
            "manifest.task",
        )


def _check_features(manifest: Manifest, card: _Card) -> None:
    if not manifest.features:
        if manifest.task != "tensor":
            card.say(
                "CARD_FEATURES_MISSING",
                "没有声明特征",
                "no features are declared",
                "请列出模型需要的列、图片或文本, 附中英文说明与单位",
                "list the columns, pictures or texts that it takes, with zh and en titles and units",
                "manifest.features",
            )
        return
    untitled = [each.name for each in manifest.features if not each.title_zh.strip() or not each.title_en.strip()]
    unitless = [each.name for each in manifest.features if _wants_unit(each)]
    without_example = [each.name for each in manifest.features if each.example is None]
    if untitled:
        card.say(
            "CARD_FEATURE_UNTITLED",
            f"{len(untitled)} 个特征缺少中文或英文说明: {_some(untitled)}",
            f"{len(untitled)} features lack a Chinese or an English title: {_some(untitled)}",
            "请填写 title_zh 与 title_en",
            "fill in title_zh and title_en",
            "manifest.features",
        )
    if unitless:
        card.softer(
            "CARD_FEATURE_UNITLESS",
            f"{len(unitless)} 个数值特征没有单位: {_some(unitless)}",
            f"{len(unitless)} number features have no unit: {_some(unitless)}",
            "请填写 unit, 无量纲写 1",
            "fill in unit; write 1 where there is none",
            "manifest.features",
        )
    if without_example:
        card.softer(
            "CARD_FEATURE_NO_EXAMPLE",
            f"{len(without_example)} 个特征没有示例值: {_some(without_example)}",
            f"{len(without_example)} features have no example: {_some(without_example)}",
            "请填写 example, 试用表单会预先填入",
            "fill in example: the try-it form shows it",
            "manifest.features",
        )


def _wants_unit(feature: Feature) -> bool:
    return feature.kind in ("number", "integer", "series") and feature.unit is None


def _check_answers(manifest: Manifest, card: _Card) -> None:
    if manifest.task.endswith("classification") and not manifest.labels:
        card.say(
            "CARD_LABELS_MISSING",
            "分类模型没有声明类别",
            "a classifier that declares no labels",
            "请填写 labels 及其中英文名称",
            "list labels with zh and en titles",
            "manifest.labels",
        )
    untitled = [each.name for each in manifest.labels if not each.title_zh.strip() or not each.title_en.strip()]
    if untitled:
        card.softer(
            "CARD_LABEL_UNTITLED",
            f"{len(untitled)} 个类别缺少中文或英文名称: {_some(untitled)}",
            f"{len(untitled)} labels lack a Chinese or an English title: {_some(untitled)}",
            "请填写 title_zh 与 title_en",
            "fill in title_zh and title_en",
            "manifest.labels",
        )


def _check_data(manifest: Manifest, card: _Card) -> None:
    if not any(source.use == "trained" for source in manifest.data):
        card.say(
            "CARD_DATA_MISSING",
            "没有说明训练数据来源",
            "the source of the training data is not stated",
            "请在 data 中写明数据集名称、网址、许可证, 用途为 trained",
            "name data set, address and licence in data, with use trained",
            "manifest.data",
        )
    for index, source in enumerate(manifest.data):
        if not source.title.strip() or not source.licence.strip():
            card.say(
                "CARD_DATA_INCOMPLETE",
                "数据来源缺少名称或许可证",
                "a data source lacks its title or licence",
                "请补全",
                "complete it",
                f"manifest.data.{index}",
            )


def _check_parent(manifest: Manifest, card: _Card) -> None:
    parent = manifest.parent
    if parent is None:
        if manifest.variation != "fp32" and manifest.recipe:
            card.softer(
                "CARD_PARENT_MISSING",
                "衍生版本没有写明上级模型",
                "a derived variation names no parent",
                "请填写 parent (名称、版本、关系)",
                "fill in parent (name, version, relation)",
                "manifest.parent",
            )
        return
    if "/" not in parent.name or parent.version < 1:
        card.say(
            "CARD_PARENT_INVALID",
            f"上级模型“{parent.name}”版本 {parent.version} 不是有效的 vendor/name 与版本号",
            f"parent {parent.name!r} version {parent.version} is no vendor/name with a version number",
            "请填写 vendor/name 与正整数版本号",
            "write vendor/name and a positive version number",
            "manifest.parent",
        )
    if parent.relation == "quantized" and manifest.variation == "fp32":
        card.say(
            "CARD_RELATION_INCONSISTENT",
            "关系是 quantized, 但变体写作 fp32",
            "the relation is quantized, yet the variation reads fp32",
            "请把 variation 改为 int8 或 fp16, 或改正关系",
            "set variation to int8 or fp16, or mend the relation",
            "manifest.variation",
        )


def _check_filing(manifest: Manifest, card: _Card) -> None:
    filing = manifest.filing
    if filing.genai_service == "public" and not (filing.filing_no and filing.filing_type):
        card.say(
            "CARD_FILING_MISSING",
            "面向公众的生成式服务没有备案或登记号",
            "a public generative service without a filing (备案) or registration (登记) number",
            "请填写 filing_type 与 filing_no",
            "fill in filing_type and filing_no",
            "manifest.filing",
        )
    if filing.filing_type == "登记" and not filing.base_model_filing_no:
        card.say(
            "CARD_FILING_BASE_MISSING",
            "登记依托的基座模型备案号没有填写",
            "a registration (登记) rests on a filed base model, whose number is missing",
            "请填写 base_model_filing_no",
            "fill in base_model_filing_no",
            "manifest.filing.base_model_filing_no",
        )
    if filing.filing_no and not filing.filing_type:
        card.say(
            "CARD_FILING_TYPE_MISSING",
            "有备案号但没有说明是备案还是登记",
            "a filing number without saying whether it is 备案 or 登记",
            "请填写 filing_type",
            "fill in filing_type",
            "manifest.filing.filing_type",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + ("…" if len(names) > _MAX_NAMED else "")
