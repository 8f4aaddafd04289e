"""Reading what `/v1/use` is sent: JSON, tables, pictures and text become rows under the model's feature names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from model_store.errors import BadInput, Refusal
from model_store.manifest import Feature, Manifest
from model_store.processing.columns import ColumnMatch, apply_matches, column_missing, match_columns
from model_store.processing.pipeline import Pipeline
from model_store.processing.tables import PARQUET_MAGIC, read_table
from model_store.tensors import Array
from serving.errors.requests import request_field, request_json
from serving.multipart import parse_form

MAX_ROWS = 10_000
ENCODED_BYTES_KEPT = 256 << 20  # of all chunks; past it they are encoded again when their turn comes
TABLE_TYPES = frozenset({"text/csv", "application/csv", "application/vnd.ms-excel", "application/parquet",
                         "application/vnd.apache.parquet"})  # fmt: skip
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM")


@dataclass(slots=True)
class Asked:
    """A request read: rows under the model's feature names, and what a table needs to be given back."""

    rows: list[dict[str, Any]]
    single: bool = False
    given: list[dict[str, Any]] | None = None  # the rows as they came, under their own headings
    headings: list[str] = field(default_factory=list)
    matches: dict[str, ColumnMatch] = field(default_factory=dict)
    is_table: bool = False


def read_rows(content_type: str, body: bytes, manifest: Manifest) -> Asked:
    """The rows of a body of any accepted kind. Raises `BadInput` and `TooLarge`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        form = parse_form(content_type, body)
        if form.file is None:
            raise request_field("file", "表单中缺少文件 file", "the form holds no file: send one as `file`")
        return _rows_of_file(form.file.content, form.file.filename, manifest)
    if kind in TABLE_TYPES or body[:4] == PARQUET_MAGIC:
        return _rows_of_table(body, "", manifest)
    if kind.startswith("image/"):
        return Asked([{_only(manifest, "image"): body}], single=True)
    if kind == "text/plain":
        return Asked([{_only(manifest, "text"): _text(body)}], single=True)
    return _rows_of_json(body, manifest)


def encode_chunks(pipeline: Pipeline, rows: Sequence[Mapping[str, Any]], size: int) -> list[dict[str, Array] | None]:
    """Tensors of every chunk of `size` rows; None where they were encoded (so known to be right) but not kept."""
    if any(step.op == "window" for step in pipeline.manifest.pre):  # a window looks back over other rows
        whole = pipeline.encode(rows)
        return [
            {name: tensor[start : start + size] for name, tensor in whole.items()}
            for start in range(0, len(rows), size)
        ]
    chunks: list[dict[str, Array] | None] = []
    kept = 0
    for start in range(0, len(rows), size):
        try:
            tensors = pipeline.encode(rows[start : start + size])
        except Refusal as refusal:
            raise _renumbered(refusal, pipeline, rows, start, size) from refusal
        kept += sum(tensor.nbytes for tensor in tensors.values())
        chunks.append(tensors if kept <= ENCODED_BYTES_KEPT else None)
    return chunks


def _renumbered(
    refusal: Refusal, pipeline: Pipeline, rows: Sequence[Mapping[str, Any]], start: int, size: int
) -> Refusal:
    """The same refusal with the row counted from the first of the request, not of its chunk."""
    if start == 0:
        return refusal
    for place in range(start, min(start + size, len(rows))):
        try:
            pipeline.encode([rows[place]])
        except Refusal as single:
            for old, new in (("row 1:", f"row {place + 1}:"), ("第 1 行", f"第 {place + 1} 行")):
                single.en, single.zh = single.en.replace(old, new, 1), single.zh.replace(old, new, 1)
            return single
    return refusal


def _rows_of_file(content: bytes, filename: str, manifest: Manifest) -> Asked:
    pictures = [feature.name for feature in manifest.features if feature.kind == "image"]
    if pictures and content.startswith(_PICTURES):
        return Asked([{_only(manifest, "image"): content}], single=True)
    return _rows_of_table(content, filename, manifest)


def _rows_of_table(content: bytes, filename: str, manifest: Manifest) -> Asked:
    headings, given = read_table(content, filename, as_text=True)
    if len(given) > MAX_ROWS:
        raise _too_many_rows(len(given))
    matches = match_columns(manifest.features, headings)
    for feature in manifest.features:
        if feature.name not in matches and feature.required and feature.default is None:
            raise column_missing(feature, headings)
    rows = apply_matches(given, matches)
    for column in _window_columns(manifest) - {feature.name for feature in manifest.features}:
        wanted = Feature(name=column, kind="text")
        found = match_columns([wanted], headings).get(column)
        if found is None:
            raise column_missing(wanted, headings)
        for row, original in zip(rows, given, strict=True):
            row[column] = original[found.heading]
    return Asked(rows, given=given, headings=headings, matches=matches, is_table=True)


def _rows_of_json(body: bytes, manifest: Manifest) -> Asked:
    """Rows under feature names; other names are matched as a table's headings are (`转速`, `Power (kW)`)."""
    inputs = json_object(body).get("inputs")
    single = isinstance(inputs, dict)
    rows = [inputs] if single else inputs
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise request_field(
            "inputs",
            "须为一行特征 {…} 或多行 [{…}, …]",
            "must be one row of features {…} or several [{…}, …]",
        )
    if len(rows) > MAX_ROWS:
        raise _too_many_rows(len(rows))
    headings = list(dict.fromkeys(name for row in rows for name in row))
    known = {feature.name for feature in manifest.features} | _window_columns(manifest)
    asked = Asked(rows, single, given=rows, headings=headings)
    if not known.issuperset(headings):
        asked.matches = match_columns(manifest.features, headings)
        used = {match.heading for match in asked.matches.values()}
        rest = [name for name in headings if name not in used]  # the pipeline names what nobody knows
        asked.rows = [
            {name: cell for name, cell in new.items() if asked.matches[name].heading in row}
            | {name: row[name] for name in rest if name in row}
            for new, row in zip(apply_matches(rows, asked.matches), rows, strict=True)
        ]
    return asked


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object, {} for an empty body. Raises `BadInput` REQUEST_JSON."""
    try:
        found = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise request_json(str(error)) from error
    if not isinstance(found, dict):
        raise request_json("a JSON object is wanted")
    return found


def _window_columns(manifest: Manifest) -> set[str]:
    """Group and order columns: no features, but a windowed model needs them."""
    found = {column for step in manifest.pre if step.op == "window" for column in (step.group, step.order)}
    return {column for column in found if column}


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("gb18030", "replace")


def _only(manifest: Manifest, kind: str) -> str:
    """The one feature of this kind; what a raw body gives."""
    found = [feature.name for feature in manifest.features if feature.kind == kind]
    if len(found) == 1:
        return found[0]
    raise BadInput(
        "CONTENT_TYPE_UNFIT",
        zh=f"该模型不接受单个 {kind} 作为请求体",
        en=f"this model does not take one {kind} as the body",
        remedy_zh='请以 JSON 发送 {"inputs": {…}}',
        remedy_en='send JSON: {"inputs": {…}}',
        field="Content-Type",
    )


def _too_many_rows(count: int) -> Refusal:
    return request_field(
        "inputs", f"共 {count} 行, 一次最多 {MAX_ROWS} 行", f"{count} rows; at most {MAX_ROWS} in one request"
    )
