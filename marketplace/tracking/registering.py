"""From a model that an MLflow client has logged to a version of the market, under one number.

The artifacts are fetched and made a bundle; the bundle is inspected; only then is the version made in MLflow, pending,
and published like any other. A model without the `onnx` flavour is never a version: pickles are not opened, so they
stay what they are, artifacts of a run.

A listing that is new is private, so that the model can be called by its own organisation at once; the model's MLflow
metadata `algomart_visibility: public` asks for a public one. Extra files logged with the model (`extra_files=[…]`) go
into the bundle: a `manifest.json` among them describes the model, a `card.md` and further files go beside it.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import yaml
from sqlmodel import select

from marketplace.access import Actor
from marketplace.catalogue.publishing import inspect, inspection_failed, publish
from marketplace.catalogue.tables import Listing
from marketplace.db import reading
from marketplace.market import Market
from marketplace.tracking.artifacts import parse_path
from marketplace.tracking.calls import Call
from marketplace.tracking.refusals import bad_request, not_found
from marketplace.tracking.tenancy import Tenancy, check_id
from marketplace.tracking.upstream import ARTIFACTS, Upstream, unavailable
from model_store.bundle import MANIFEST, MODEL, Bundle, check_file_name, parse_manifest, seal
from model_store.errors import TooLarge, Unprocessable
from model_store.graph_specs import read_model_proto, specs_of
from model_store.manifest import Manifest
from model_store.mlflow_store import tag_pairs, version_tags
from model_store.names import canonical

MLMODEL = "MLmodel"
EXTRA = "extra_files/"
MAX_MLMODEL_BYTES = 1 << 20
MAX_FILES = 1024
VISIBILITY = "algomart_visibility"
_NOT_BUNDLED = frozenset(
    {MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt", "registered_model_meta", "input_example.json",
     "serving_input_example.json"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Where a logged model lies: its artifact folder, proved to be the caller's."""

    folder: str


class Registering:
    """Sync where it publishes (run it in a thread), async where it resolves ids."""

    def __init__(
        self, market: Market, upstream: Upstream, tenancy: Tenancy, base_url: str, headers: dict[str, str]
    ) -> None:
        self._market, self._upstream, self._tenancy = market, upstream, tenancy
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=120.0, trust_env=False)

    def close(self) -> None:
        self._http.close()

    async def source_of(self, call: Call) -> Source:
        """The folder that `source` names: a logged model of the caller's, or a folder of one of the caller's runs."""
        parts = urlsplit(call.text("source"))
        owner = call.organisation
        for field, kind in (("run_id", "run"), ("model_id", "logged model")):
            if given := call.text(field):
                await self._tenancy.check(owner, kind, given)
        if parts.scheme == "models" and not parts.netloc and parts.path.count("/") <= 1:
            wanted = await self._tenancy.check(owner, "logged model", check_id(parts.path.strip("/"), "source"))
            return Source(f"{await self._tenancy.experiment_of('logged model', wanted)}/models/{wanted}/artifacts")
        if parts.scheme == "mlflow-artifacts" and not parts.query:
            place = parse_path(parts.path)
            if place.kind == "traces" or not place.id or await self._tenancy.owner(place.experiment) != owner:
                raise not_found("artifact", place.path)
            return Source(place.path)
        raise bad_request(
            "source 应为本单位的模型记录 (models:/m-…) 或运行中的模型 (runs:/…)",
            "source has to be a logged model (models:/m-…) or a model in a run (runs:/…) of your organisation",
            "source",
        )

    def register(self, actor: Actor, body: dict[str, Any], source: Source) -> dict[str, Any]:
        """Publish the model and answer as MLflow's `model-versions/create` does. Raises what `publish` raises."""
        name = canonical(str(body["name"]))
        self._market.await_registry()
        described = self._described(source)
        scratch = self._market.settings.home / "tmp" / f"mlflow-{secrets.token_hex(8)}"
        scratch.mkdir(parents=True)
        try:
            fetched = self._fetch(source, scratch / "artifacts")
            bundle = bundle_of(fetched, described, name, scratch / "bundle")
            private = self._private(name, described)
            report = inspect(bundle.path, private=private)
            if not report["passed"]:
                raise inspection_failed(name, report)

            def make_version(kept: Bundle, publication: str) -> int:
                tags = [*(body.get("tags") or []), *tag_pairs(version_tags(kept, publication))]
                made = self._call("POST", "model-versions/create", {**body, "tags": tags})
                return int(made["model_version"]["version"])

            published = publish(
                self._market,
                bundle.path,
                organisation_id=actor.organisation_id,
                published_by=actor.id,
                private=private,
                report=report,
                register=make_version,
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self._call("GET", "model-versions/get", {"name": body["name"], "version": str(published.version)})

    def _private(self, name: str, described: dict[str, Any]) -> bool:
        """As the listing is; a new one is private unless the model's metadata says otherwise."""
        asked = str((described.get("metadata") or {}).get(VISIBILITY, ""))
        if asked in ("public", "private"):
            return asked == "private"
        with reading(self._market.engine) as session:
            listing = session.exec(select(Listing).where(Listing.name == name)).first()
        return listing is None or listing.visibility == "private"

    def _described(self, source: Source) -> dict[str, Any]:
        """The MLmodel of the folder; `Unprocessable` where it is none, or not of the onnx flavour."""
        response = self._get(f"{ARTIFACTS}/{quote(source.folder)}/{MLMODEL}")
        if response.status_code != 200 or len(response.content) > MAX_MLMODEL_BYTES:
            raise _no_model("该目录中没有 MLmodel", "there is no MLmodel in that folder")
        try:
            described = yaml.safe_load(response.content)
            flavours = set(described["flavors"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise _no_model("MLmodel 无法解析", "its MLmodel cannot be read") from error
        if "onnx" not in flavours:
            raise _not_onnx(sorted(str(flavour) for flavour in flavours))
        return dict(described)

    def _fetch(self, source: Source, target: Path) -> Path:
        """Every file of the folder, by name and within the market's limits."""
        left, count = self._market.settings.max_upload_bytes, 0
        folders = [source.folder]
        while folders:
            at = folders.pop()
            listed = self._get(ARTIFACTS, path=at).json().get("files", [])
            for entry in listed:
                path = f"{at}/{str(entry['path']).rsplit('/', 1)[-1]}"
                if entry.get("is_dir"):
                    folders.append(path)
                    continue
                count += 1
                if count > MAX_FILES:
                    raise _too_large(self._market.settings.max_upload_bytes)
                file = target / check_file_name(path.removeprefix(f"{source.folder}/"))
                left -= self._download(path, file, left)
        return target

    def _download(self, path: str, target: Path, allowed: int) -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        try:
            with self._http.stream("GET", f"{ARTIFACTS}/{quote(path)}") as response, target.open("wb") as out:
                if response.status_code != 200:
                    raise unavailable(f"HTTP {response.status_code} for {path}")
                for chunk in response.iter_bytes(1 << 20):
                    written += len(chunk)
                    if written > allowed:
                        raise _too_large(self._market.settings.max_upload_bytes)
                    out.write(chunk)
        except httpx.HTTPError as error:
            raise unavailable(error) from error
        return written

    def _get(self, url: str, **query: str) -> httpx.Response:
        try:
            return self._http.get(url, params=query)
        except httpx.HTTPError as error:
            raise unavailable(error) from error

    def _call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"/api/2.0/mlflow/{path}"
        try:
            sent = {"params": body} if method == "GET" else {"json": body}
            response = self._http.request(method, url, **sent)  # type: ignore[arg-type]
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise unavailable(error) from error
        if not response.is_success:
            raise bad_request(f"MLflow: {answer.get('message')}", f"MLflow: {answer.get('message')}", "source")
        return dict(answer)


def bundle_of(fetched: Path, described: dict[str, Any], name: str, folder: Path) -> Bundle:
    """A sealed bundle from the files of an MLflow model: its graph, weights beside it, and what was logged with it."""
    data = str((described["flavors"]["onnx"] or {}).get("data") or MODEL)
    graph = fetched / check_file_name(data)
    folder.mkdir(parents=True)
    if graph.is_dir():  # a model that mlflow split in parts
        raise _no_model("onnx 模型应为单个文件", "its onnx data is not a single file")
    model = read_model_proto(graph)
    for file in sorted(path for path in fetched.rglob("*") if path.is_file()):
        relative = file.relative_to(fetched).as_posix()
        target = MODEL if file == graph else relative.removeprefix(EXTRA)
        if relative in _NOT_BUNDLED or relative.split("/")[0] in _NOT_BUNDLED or target == MANIFEST:
            continue
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / target)
    own = fetched / EXTRA / MANIFEST
    if own.is_file():
        manifest = parse_manifest(own.read_bytes()).model_copy(update={"name": name, "files": {}})
    else:
        inputs, outputs = specs_of(model)
        manifest = Manifest.model_validate(
            {
                "name": name,
                "title_zh": name,
                "title_en": name,
                "inputs": inputs,
                "outputs": outputs,
                "batching": {"dynamic": False},  # nothing in a bare graph says that its rows are independent
            }
        )
    return seal(folder, manifest)


def _not_onnx(flavours: list[str]) -> Unprocessable:
    found = ", ".join(flavours)[:120] or "-"
    return Unprocessable(
        "FLAVOUR_NOT_ONNX",
        zh=f"该模型的 MLflow 格式是 {found}, 市场只注册 onnx 格式; pickle 等格式会执行代码, 一律不打开",
        en=f"the model's MLflow flavours are {found}; the market registers only the onnx flavour and opens no pickle",
        remedy_zh="请导出为 ONNX (skl2onnx、torch.onnx) 并用 mlflow.onnx.log_model 记录",
        remedy_en="export it to ONNX (skl2onnx, torch.onnx) and log it with mlflow.onnx.log_model",
        field="source",
    )


def _no_model(zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "MLFLOW_MODEL_INVALID",
        zh=zh,
        en=en,
        remedy_zh="请用 mlflow.onnx.log_model 记录模型",
        remedy_en="log the model with mlflow.onnx.log_model",
        field="source",
    )


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        "UPLOAD_TOO_LARGE",
        zh=f"模型文件超过上限 ({MAX_FILES} 个文件, {limit} 字节)",
        en=f"the model is over the limit ({MAX_FILES} files, {limit} bytes)",
        remedy_zh="请减小模型, 或请运营方调整 ALGOMART_MAX_UPLOAD_BYTES",
        remedy_en="make the model smaller, or ask the operator to raise ALGOMART_MAX_UPLOAD_BYTES",
        field="source",
    )
