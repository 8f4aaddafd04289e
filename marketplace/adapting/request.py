"""Checking a request to adapt before it becomes a job: recipe, parameters, parent, samples, name, queue."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, func, select

from adapters.recipe import Recipe, recipe_named
from marketplace.adapting.tables import Job
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.choosing.tables import SampleSet
from marketplace.clock import now_ms
from marketplace.ids import new_id
from marketplace.organisations.tables import Organisation
from model_store.errors import BadInput, Conflict, Forbidden, NotFound, Refusal, TooMany, Unprocessable
from model_store.manifest import Manifest
from model_store.names import MAX_SLUG_CHARACTERS, check_slug, split_name
from serving.ports import Principal, ServedVersion

MAX_WAITING_JOBS = 10  # queued and running, per organisation
MAX_COLUMNS = 2_000
MAX_TEXT = 200
FIELDS = frozenset({"recipe", "model", "sample_set_id", "name", "label_column", "columns", "params", "seed"})
WAITING_STATES = ("queued", "running", "registering")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request whose every field has the right type; nothing looked up yet."""

    recipe: Recipe
    params: dict[str, Any]
    model: str | None
    selector: str | None
    sample_set_id: str
    name: str | None
    label_column: str | None
    columns: dict[str, str]
    seed: int


def read_request(request: Mapping[str, Any]) -> Wanted:
    """Types and bounds of a request; raises `BadInput` naming the field, `NotFound` for an unknown recipe."""
    for name in request:
        if name not in FIELDS:
            raise _bad(str(name)[:60], "未知字段", "is not a field of this request", ", ".join(sorted(FIELDS)))
    recipe = recipe_named(_text(request, "recipe") or _missing("recipe"))
    params = request.get("params") or {}
    if not isinstance(params, Mapping):
        raise _bad("params", "应为对象", "must be an object", "{}")
    columns = request.get("columns") or {}
    if not isinstance(columns, Mapping) or len(columns) > MAX_COLUMNS or not all(map(_is_short_text, columns.values())):
        raise _bad("columns", "应为 特征名 → 列名 的对象", "maps feature names to headings", '{"AT": "温度"}')
    seed = request.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise _bad("seed", "应为 0 到 2^31-1 的整数", "must be an integer from 0 to 2^31-1", "0")
    model, found, selector = (_text(request, "model") or "").partition("@")
    return Wanted(
        recipe=recipe,
        params=recipe.check(params),
        model=model or None,
        selector=selector if found else None,
        sample_set_id=_text(request, "sample_set_id") or _missing("sample_set_id"),
        name=_text(request, "name"),
        label_column=_text(request, "label_column"),
        columns={str(name): str(heading) for name, heading in columns.items()},
        seed=seed,
    )


def create_job(session: Session, principal: Principal, wanted: Wanted, parent: ServedVersion | None) -> Job:
    """Check what was asked for against what is there, and queue it."""
    organisation = session.get_one(Organisation, principal.organisation)
    waiting = select(func.count()).select_from(Job).where(Job.organisation_id == organisation.id)
    if session.exec(waiting.where(col(Job.state).in_(WAITING_STATES))).one() >= MAX_WAITING_JOBS:
        raise TooMany(
            "JOB_QUEUE_FULL",
            zh=f"贵单位已有 {MAX_WAITING_JOBS} 个任务在排队或运行",
            en=f"your organisation already has {MAX_WAITING_JOBS} jobs waiting or running",
            remedy_zh="请等待任务结束, 或取消不需要的任务",
            remedy_en="wait for one to end, or cancel what you no longer need",
            retry_after_s=30,
        )
    manifest = parent_manifest(session, parent) if parent else None
    wanted.recipe.check_parent(manifest)
    samples = check_samples(session, principal.organisation, wanted)
    job = Job(
        id=new_id("job"),
        organisation_id=organisation.id,
        created_by=principal.member or principal.key_id,
        recipe=wanted.recipe.name,
        parent_version_id=parent.version_id if parent else None,
        sample_set_id=samples.id,
        target_name=_target_name(session, organisation, wanted, parent),
        stage="queued",
        params={
            "params": wanted.params,
            "columns": wanted.columns,
            "label_column": wanted.label_column or samples.label_column,
            "seed": wanted.seed,
            "model": f"{parent.name}@{parent.version}" if parent else None,
            "parent_version": parent.version if parent else 0,
        },
    )
    session.add(job)
    return job


def parent_manifest(session: Session, parent: ServedVersion) -> Manifest:
    """The manifest of a served version as the catalogue keeps it; from the bundle's own file where the row has none."""
    row = session.get(ModelVersion, parent.version_id)
    plain = row.manifest if row and row.manifest else json.loads((parent.bundle / "manifest.json").read_text())
    return Manifest.model_validate(plain)


def check_samples(session: Session, organisation_id: str, wanted: Wanted) -> SampleSet:
    """The organisation's own living sample set, of the right kind and size for the recipe."""
    samples = session.get(SampleSet, wanted.sample_set_id)
    if samples is None or samples.organisation_id != organisation_id:
        raise samples_gone(wanted.sample_set_id)
    if samples.deleted_at_ms is not None or samples.expires_at_ms <= now_ms():
        raise samples_gone(wanted.sample_set_id)
    kind = {"table": "table", "images": "images"}.get(wanted.recipe.data)
    if kind is not None and samples.kind != kind:
        raise Unprocessable(
            "SAMPLES_WRONG_KIND",
            zh=f"配方 {wanted.recipe.name} 需要{'表格' if kind == 'table' else '图片'}样本",
            en=f"recipe {wanted.recipe.name} works on {'a table' if kind == 'table' else 'images'}",
            remedy_zh="请上传 CSV/Parquet 表格, 或按标签分文件夹的图片 zip",
            remedy_en="upload a CSV or Parquet table, or a zip of images in label folders",
            field="sample_set_id",
        )
    if samples.rows < wanted.recipe.needs.min_rows:
        raise Unprocessable(
            "SAMPLES_TOO_FEW",
            zh=f"样本只有 {samples.rows} 行, 配方 {wanted.recipe.name} 至少需要 {wanted.recipe.needs.min_rows} 行",
            en=f"{samples.rows} rows are too few: recipe {wanted.recipe.name} needs {wanted.recipe.needs.min_rows}",
            remedy_zh="请上传更多样本",
            remedy_en="upload more samples",
            field="sample_set_id",
        )
    return samples


def samples_gone(sample_set_id: str) -> Refusal:
    return NotFound(
        "SAMPLE_SET_NOT_FOUND",
        zh=f"样本集 {sample_set_id[:60]} 不存在、已删除或已过期",
        en=f"sample set {sample_set_id[:60]!r} does not exist, was deleted or has expired",
        remedy_zh="请重新上传样本",
        remedy_en="upload the samples again",
        field="sample_set_id",
    )


def _target_name(session: Session, organisation: Organisation, wanted: Wanted, parent: ServedVersion | None) -> str:
    """`<own slug>/<name>`: as asked, or made of the parent's name and the recipe; never a public or foreign listing."""
    if not organisation.slug:
        raise Forbidden(
            "ORGANISATION_HAS_NO_SLUG",
            zh="贵单位还没有英文短名, 无法为派生模型命名",
            en="your organisation has no slug yet, so a derivative cannot be named",
            remedy_zh="请联系平台运营方设置短名",
            remedy_en="ask the operator to set one",
        )
    if wanted.name:
        vendor, slug = split_name(wanted.name) if "/" in wanted.name else (organisation.slug, wanted.name)
        if vendor != organisation.slug:
            raise Forbidden(
                "NAME_NOT_YOURS",
                zh=f"派生模型必须在贵单位名下: {organisation.slug}/…",
                en=f"a derivative is named under your own organisation: {organisation.slug}/…",
                remedy_zh=f"请改用 {organisation.slug}/{slug}",
                remedy_en=f"use {organisation.slug}/{slug}",
                field="name",
            )
    else:
        base = parent.name.partition("/")[2] if parent else ""
        suffix = wanted.recipe.name.replace("_", "-")
        slug = re.sub(r"-{2,}", "-", f"{base}-{suffix}").strip("-") if base else suffix
        slug = slug[:MAX_SLUG_CHARACTERS].rstrip("-._")
    name = f"{organisation.slug}/{check_slug(slug)}"
    listing = session.exec(select(Listing).where(Listing.name == name)).first()
    if listing is not None and listing.visibility != "private":
        raise Conflict(
            "NAME_TAKEN",
            zh=f"{name} 是公开模型, 不能作为私有派生模型的名称",
            en=f"{name} is a public listing; a private derivative cannot take its name",
            remedy_zh="请在 name 中给出另一个名称",
            remedy_en="give another name",
            field="name",
        )
    return name


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _text(request: Mapping[str, Any], field: str) -> str | None:
    value = request.get(field)
    if value is None or value == "":
        return None
    if not _is_short_text(value):
        raise _bad(field, f"应为不超过 {MAX_TEXT} 个字符的文本", f"must be text of at most {MAX_TEXT} characters", "")
    return str(value)


def _missing(field: str) -> str:
    raise _bad(field, "缺少此字段", "is missing", "")


def _bad(field: str, zh: str, en: str, example: str) -> BadInput:
    return BadInput(
        "REQUEST_INVALID",
        zh=f"{field}: {zh}",
        en=f"{field} {en}",
        remedy_zh=f"例如: {example}" if example else "请参阅 GET /v1/recipes",
        remedy_en=f"for example: {example}" if example else "see GET /v1/recipes",
        field=field,
    )
