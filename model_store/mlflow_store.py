"""The MLflow store: speaks MLflow's REST API 2.0 over httpx. mlflow itself (1–4 s, 170 MB) is never imported.

A published version is a run in the experiment `algomart-publications` (its metrics are the manifest's) with the
bundle's files and an `MLmodel` of the `onnx` flavour as artifacts, and a registered model version whose source they
are: so an unmodified `mlflow.onnx.load_model("models:/vendor--name/1")` works. MLflow 3 accepts an artifact source
only inside the artifact root of the run (or logged model) that the version names, which is why there is a run at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import yaml

from model_store.bundle import ADAPTER, MANIFEST, MODEL, Bundle
from model_store.errors import Unavailable
from model_store.manifest import Manifest, TensorSpec
from model_store.names import canonical, path_name
from model_store.store import StoredVersion, version_not_stored

EXPERIMENT = "algomart-publications"
PENDING_TAG, DIGEST_TAG, PUBLICATION_TAG = "algomart.pending", "algomart.digest", "algomart.publication"
PARENT_TAG, RELATION_TAG = "algomart.parent", "algomart.relation"
MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND"})
PAGE = 200
_METRIC_REFUSED = re.compile(r"[^A-Za-z0-9_.: -]")
_NUMPY_NAMES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "BF16": "float16", "FP32": "float32",
    "FP64": "float64", "BYTES": "object",
}  # fmt: skip


class MlflowRefused(Exception):
    """MLflow's own refusal: `code` is its error_code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code


class MlflowStore:
    """Implements `ModelStore` against the server at `base_url`; `headers` carry what authorises us there.

    `artifact_folder`: where that server keeps artifacts, if it is on this machine: then the files of a bundle are
    hard-linked there instead of copied, so `create_pending` wants a bundle folder that will never change.
    """

    def __init__(
        self,
        base_url: str,
        headers: dict[str, str] | None = None,
        artifact_folder: Path | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self._artifact_folder = artifact_folder
        self._http = httpx.Client(base_url=base_url, headers=headers or {}, timeout=timeout_s, trust_env=False)
        self._experiment = ""

    def close(self) -> None:
        self._http.close()

    # --- ModelStore -------------------------------------------------------------------------------------------------
    def create_pending(self, name: str, bundle: Bundle, *, publication: str) -> int:
        registered = path_name(canonical(name))
        tags = version_tags(bundle, publication)
        self._ensure_model(registered)
        run, artifacts = self._create_run(name, bundle, publication)
        self._upload(bundle, artifacts)
        answer = self._call(
            "POST",
            "model-versions/create",
            {"name": registered, "source": f"mlflow-artifacts:/{artifacts}", "run_id": run, "tags": tag_pairs(tags)},
        )
        return int(answer["model_version"]["version"])

    def confirm(self, name: str, number: int) -> None:
        registered = path_name(canonical(name))
        try:
            self._call("DELETE", "model-versions/delete-tag",
                       {"name": registered, "version": str(number), "key": PENDING_TAG})  # fmt: skip
        except MlflowRefused as refused:
            if refused.code not in MISSING:
                raise
            if number not in {version.number for version in self.versions(name)}:
                raise version_not_stored(name, number) from refused

    def remove(self, name: str, number: int) -> None:
        publications = [version.publication for version in self.versions(name) if version.number == number]
        self._quietly("DELETE", "model-versions/delete", {"name": path_name(canonical(name)), "version": str(number)})
        for publication in filter(None, publications):
            self._drop_runs(publication)

    def discard(self, publication: str) -> None:
        for version in self._search(f"tags.`{PUBLICATION_TAG}`='{publication}'"):
            body = {"name": path_name(version.name), "version": str(version.number)}
            self._quietly("DELETE", "model-versions/delete", body)
        self._drop_runs(publication)

    def versions(self, name: str) -> list[StoredVersion]:
        found = self._search(f"name='{path_name(canonical(name))}'")
        return sorted(found, key=lambda version: version.number)

    def pending(self) -> list[StoredVersion]:
        return [version for version in self._search(f"tags.`{PENDING_TAG}`='true'") if version.pending]

    def set_alias(self, name: str, alias: str, number: int) -> None:
        registered = path_name(canonical(name))
        try:
            self._call("POST", "registered-models/alias",
                       {"name": registered, "alias": alias, "version": str(number)})  # fmt: skip
        except MlflowRefused as refused:
            if refused.code in MISSING:
                raise version_not_stored(name, number) from refused
            raise

    def delete_alias(self, name: str, alias: str) -> None:
        self._quietly("DELETE", "registered-models/alias", {"name": path_name(canonical(name)), "alias": alias})

    def aliases(self, name: str) -> dict[str, int]:
        try:
            answer = self._call("GET", "registered-models/get", {"name": path_name(canonical(name))})
        except MlflowRefused as refused:
            if refused.code in MISSING:
                return {}
            raise
        return {row["alias"]: int(row["version"]) for row in answer["registered_model"].get("aliases", [])}

    # --- what they are made of ----------------------------------------------------------------------------------------
    def _call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One REST call; `MlflowRefused` for MLflow's refusals, `Unavailable` where no MLflow answers."""
        url = f"/api/2.0/mlflow/{path}"
        try:
            if method == "GET":
                response = self._http.get(url, params=body)
            else:
                response = self._http.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise _unavailable(error) from error
        if response.is_success:
            return dict(response.json()) if response.content else {}
        try:
            said = response.json()
        except ValueError:
            raise _unavailable(f"HTTP {response.status_code}") from None
        raise MlflowRefused(response.status_code, str(said.get("error_code")), str(said.get("message")))

    def _quietly(self, method: str, path: str, body: dict[str, Any]) -> None:
        """The call, where what is not there is fine."""
        try:
            self._call(method, path, body)
        except MlflowRefused as refused:
            if refused.code not in MISSING:
                raise

    def _ensure_model(self, registered: str) -> None:
        try:
            self._call("POST", "registered-models/create", {"name": registered})
        except MlflowRefused as refused:
            if refused.code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment_id(self) -> str:
        if not self._experiment:
            try:
                self._experiment = self._find_experiment()
            except MlflowRefused as refused:
                if refused.code not in MISSING:
                    raise
                self._experiment = self._make_experiment()
        return self._experiment

    def _find_experiment(self) -> str:
        found = self._call("GET", "experiments/get-by-name", {"experiment_name": EXPERIMENT})
        return str(found["experiment"]["experiment_id"])

    def _make_experiment(self) -> str:
        try:
            return str(self._call("POST", "experiments/create", {"name": EXPERIMENT})["experiment_id"])
        except MlflowRefused as refused:  # another publisher made it between our look and our create
            if refused.code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._find_experiment()

    def _create_run(self, name: str, bundle: Bundle, publication: str) -> tuple[str, str]:
        """A finished run that carries the manifest's metrics; its id and where the model's artifacts go."""
        now_ms = time.time_ns() // 1_000_000
        tags = tag_pairs({"mlflow.runName": f"{name} {bundle.digest[:12]}", PUBLICATION_TAG: publication})
        body = {"experiment_id": self._experiment_id(), "start_time": now_ms, "tags": tags}
        run = self._call("POST", "runs/create", body)["run"]
        run_id, root = run["info"]["run_id"], str(run["info"]["artifact_uri"])
        metrics = [
            {"key": metric_key(metric.name), "value": metric.value, "timestamp": now_ms, "step": 0}
            for metric in bundle.manifest.metrics
        ]
        if metrics:
            self._call("POST", "runs/log-batch", {"run_id": run_id, "metrics": metrics})
        self._call("POST", "runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": now_ms})
        return run_id, f"{root.removeprefix('mlflow-artifacts:').strip('/')}/model"

    def _drop_runs(self, publication: str) -> None:
        """Delete the runs of a publication with their files; a client's own runs carry no such tag."""
        body = {"experiment_ids": [self._experiment_id()], "filter": f"tags.`{PUBLICATION_TAG}` = '{publication}'"}
        for run in self._call("POST", "runs/search", body).get("runs", []):
            self._quietly("POST", "runs/delete", {"run_id": run["info"]["run_id"]})
            folder = str(run["info"]["artifact_uri"]).removeprefix("mlflow-artifacts:").strip("/")
            if self._artifact_folder is not None:
                shutil.rmtree(self._artifact_folder / folder, ignore_errors=True)
            else:
                self._transfer("DELETE", folder)

    def _upload(self, bundle: Bundle, artifacts: str) -> None:
        """The bundle's files and an MLmodel: linked where the folder is ours, else through the artifact proxy."""
        names = [MANIFEST, *bundle.manifest.files]
        if self._artifact_folder is not None:
            folder = self._artifact_folder / artifacts
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "MLmodel").write_bytes(mlmodel_of(bundle).encode())
            for relative in names:
                _link(bundle.path / relative, folder / relative)
            return
        self._put(f"{artifacts}/MLmodel", mlmodel_of(bundle).encode())
        for relative in names:
            self._put(f"{artifacts}/{relative}", bundle.path / relative)

    def _put(self, path: str, content: bytes | Path) -> None:
        if isinstance(content, Path):
            size = str(content.stat().st_size)
            self._transfer("PUT", path, content=_chunks(content), headers={"Content-Length": size})
        else:
            self._transfer("PUT", path, content=content)

    def _transfer(self, method: str, path: str, **more: Any) -> None:
        try:
            response = self._http.request(method, f"/api/2.0/mlflow-artifacts/artifacts/{quote(path)}", **more)
        except httpx.HTTPError as error:
            raise _unavailable(error) from error
        if not response.is_success and not (method == "DELETE" and response.status_code == 404):
            raise _unavailable(f"HTTP {response.status_code} for {path}")

    def _search(self, filter_string: str) -> list[StoredVersion]:
        found: list[StoredVersion] = []
        token = ""
        while True:
            query = {"filter": filter_string, "max_results": PAGE} | ({"page_token": token} if token else {})
            answer = self._call("GET", "model-versions/search", query)
            found += [_stored(row) for row in answer.get("model_versions", [])]
            token = str(answer.get("next_page_token") or "")
            if not token:
                return found


def mlmodel_of(bundle: Bundle) -> str:
    """MLflow's model description (YAML): the onnx flavour and a tensor signature from the manifest."""
    manifest: Manifest = bundle.manifest
    flavors: dict[str, Any] = {
        "onnx": {"data": MODEL, "onnx_version": "1.23.2", "providers": ["CPUExecutionProvider"]},
        "python_function": {"loader_module": "mlflow.onnx", "data": MODEL, "python_version": "3.11.0"},
    }
    if manifest.adapter_of is not None:  # no graph of its own, so nothing that mlflow.onnx could load
        flavors = {"onnxruntime_adapter": {"data": ADAPTER, "base": manifest.adapter_of.digest}}
    return yaml.safe_dump(
        {
            "artifact_path": "model",
            "flavors": flavors,
            "mlflow_version": "3.17.2",
            "model_uuid": bundle.digest[:32],
            "utc_time_created": "1980-01-01 00:00:00.000000",
            "signature": {
                "inputs": json.dumps([_signature(spec) for spec in manifest.inputs]),
                "outputs": json.dumps([_signature(spec) for spec in manifest.outputs]),
                "params": None,
            },
            "metadata": {"algomart_digest": bundle.digest, "algomart_name": manifest.name},
        },
        sort_keys=True,
        allow_unicode=True,
    )


def _signature(spec: TensorSpec) -> dict[str, Any]:
    shape = spec.shape or [-1]
    return {"name": spec.name, "type": "tensor", "tensor-spec": {"dtype": _NUMPY_NAMES[spec.dtype], "shape": shape}}


def version_tags(bundle: Bundle, publication: str) -> dict[str, str]:
    """What marks a version that is being published: pending, its digest, its publication, its lineage."""
    tags = {PENDING_TAG: "true", DIGEST_TAG: bundle.digest, PUBLICATION_TAG: publication}
    parent = bundle.manifest.descends_from
    if parent is not None:
        tags |= {PARENT_TAG: f"{parent.name}@{parent.version}", RELATION_TAG: parent.relation}
    return tags


def metric_key(name: str) -> str:
    """A metric's name as MLflow takes it: what it does not allow (`miss_rate_at_5%_overkill`) becomes `_`."""
    return _METRIC_REFUSED.sub("_", name.strip("/ ."))[:250] or "metric"


def tag_pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _stored(row: dict[str, Any]) -> StoredVersion:
    tags = {tag["key"]: tag["value"] for tag in row.get("tags", [])}
    return StoredVersion(
        name=str(row["name"]).replace("--", "/", 1),
        number=int(row["version"]),
        digest=tags.get(DIGEST_TAG, ""),
        publication=tags.get(PUBLICATION_TAG, ""),
        pending=tags.get(PENDING_TAG) == "true",
        parent=tags.get(PARENT_TAG, ""),
        relation=tags.get(RELATION_TAG, ""),
        tags=tags,
    )


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the two folders are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk


def _unavailable(why: object) -> Unavailable:
    return Unavailable(
        "REGISTRY_UNAVAILABLE",
        zh=f"模型登记服务 (MLflow) 暂不可用: {str(why)[:200]}",
        en=f"the model registry (MLflow) is not available: {str(why)[:200]}",
        remedy_zh="请稍后重试; 市场会自动重启登记服务",
        remedy_en="try again shortly; the market restarts it by itself",
        retry_after_s=5,
    )
