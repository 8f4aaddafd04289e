"""The Python client: everything a factory, a vendor or an engineer does at the market, over its public HTTP interface.

    from marketplace.client import Market
    market = Market("http://127.0.0.1:8000", key="am_…")
    market.search("轴承 故障")["items"][0]["name"]
    market.use("dongzhi/power-load-boosting", {"AT": 14.9, "V": 41.8, "AP": 1012.2, "RH": 73.2})

It needs httpx and nothing else of this project: no fastapi, no sqlmodel, no onnxruntime, no torch.
"""

from __future__ import annotations

import io
import os
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import httpx  # at the first market: the command line imports this for commands that talk to none

RETRIES = 2
LONGEST_WAIT_S = 10.0
FIRST_PAUSE_S = 0.2
JOB_ENDED = frozenset({"done", "failed", "cancelled"})
Progress = Callable[[float, str], None]


class MarketError(Exception):
    """What the market refused: `code` is stable, `zh` and `en` say what and `remedy`/`remedy_zh` how to mend it."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(body.get("code", f"HTTP_{status}"))
        self.en = str(body.get("message", ""))
        self.zh = str(body.get("message_zh", ""))
        self.remedy = str(body.get("remedy", ""))
        self.remedy_zh = str(body.get("remedy_zh", ""))
        self.field = body.get("field")
        self.retry_after_s = body.get("retry_after_s")
        self.details: dict[str, Any] = dict(body.get("details") or {})
        super().__init__(f"{self.code}: {self.en}" + (f" — {self.remedy}" if self.remedy else ""))

    def as_dict(self) -> dict[str, Any]:
        """The wire form again: code, message, message_zh, remedy, remedy_zh, field, details."""
        return {
            "code": self.code, "message": self.en, "message_zh": self.zh, "remedy": self.remedy,
            "remedy_zh": self.remedy_zh, "field": self.field, "details": self.details,
        }  # fmt: skip


class Market:
    """A session with one market. `url` and `key` default to ALGOMART_URL and ALGOMART_KEY."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0, retries: int = RETRIES
    ) -> None:
        """`retries`: how often a call is sent again where that does no harm (see `request`); 0: never."""
        import httpx

        self._retries = retries
        self.url = (url or os.environ.get("ALGOMART_URL") or "http://127.0.0.1:8000").rstrip("/")
        self.key = key or os.environ.get("ALGOMART_KEY") or ""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # trust_env=False: a factory's proxy settings must not carry its samples elsewhere.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- the wire ---------------------------------------------------------------------------------------------------
    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any call, with refusals raised as `MarketError`.

        Sent again: what the market asks to be sent again within ten seconds (429, and 503 where nothing was done or
        doing it twice is harmless), and what a broken connection lost, if it only reads or carries an Idempotency-Key.
        """
        import httpx

        harmless = method == "GET" or "Idempotency-Key" in (options.get("headers") or {})
        for left in range(self._retries, -1, -1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError:
                if not (left and harmless):
                    raise
                time.sleep(FIRST_PAUSE_S * 2 ** (self._retries - left))
                continue
            if response.is_success:
                return response
            refusal = MarketError(response.status_code, _refusal(response))
            again = refusal.status == 429 or (refusal.status == 503 and harmless)
            if not (left and again) or refusal.retry_after_s is None or refusal.retry_after_s > LONGEST_WAIT_S:
                raise refusal
            time.sleep(refusal.retry_after_s)
        raise AssertionError("the last attempt answers or raises")

    def get(self, path: str, **params: Any) -> Any:
        given = {name: value for name, value in params.items() if value is not None}
        return self.request("GET", path, params=given).json()

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.request("POST", path, json=body if body is not None else {}, **options).json()

    # --- find and look ------------------------------------------------------------------------------------------------
    def me(self) -> dict[str, Any]:
        return dict(self.get("/api/v1/me"))

    def search(self, query: str = "", *, page: int = 1, sort: str | None = None, **facets: str) -> dict[str, Any]:
        """`{"items", "total", "facets"}`; facets by axis name: task=, scenario=, tier=, vendor= …"""
        return dict(self.get("/api/v1/models", q=query or None, page=page, sort=sort, **facets))

    def model(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/api/v1/models/{name}"))

    def lineage(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/api/v1/models/{name}/lineage"))

    # --- publish ------------------------------------------------------------------------------------------------------
    def publish(
        self, path: str | Path, name: str, *, private: bool = False, golden: str | Path | None = None
    ) -> dict[str, Any]:
        """Publish a bundle (folder or zip) or a bare `model.onnx` as `vendor/name`; the answer carries the report."""
        return self._upload("/api/v1/publish", path, name, private=private, golden=golden)

    def inspect(
        self, path: str | Path, name: str, *, private: bool = False, golden: str | Path | None = None
    ) -> dict[str, Any]:
        """The inspection report that publishing would give; nothing is kept."""
        return self._upload("/api/v1/inspect", path, name, private=private, golden=golden)

    def _upload(
        self, route: str, path: str | Path, name: str, *, private: bool, golden: str | Path | None
    ) -> dict[str, Any]:
        source = Path(path)
        files = {"file": (_upload_name(source), _as_upload(source), "application/octet-stream")}
        if golden is not None:
            files["golden"] = ("golden.zip", _zipped(Path(golden)), "application/zip")
        data = {"name": name, "private": "true" if private else "false"}
        return dict(self.request("POST", route, data=data, files=files, timeout=600.0).json())

    def submit(self, name: str, version: int) -> dict[str, Any]:
        """Hand an inspected version to the operator's review queue."""
        return dict(self.post(f"/api/v1/models/{name}/versions/{version}/submit"))

    def set_price(self, name: str, *, unit: str, micro_per_unit: int, kind: str = "use") -> dict[str, Any]:
        """A new price version in micro-fen (370_000 = 0.37 fen) per `unit`: calls, rows, images, ms …"""
        return dict(
            self.post(f"/api/v1/models/{name}/prices", {"kind": kind, "unit": unit, "micro_per_unit": micro_per_unit})
        )

    def set_alias(self, name: str, alias: str, version: int) -> dict[str, Any]:
        return dict(self.request("PUT", f"/api/v1/models/{name}/aliases/{alias}", json={"version": version}).json())

    # --- choose -------------------------------------------------------------------------------------------------------
    def upload_samples(self, path: str | Path, **form: str) -> dict[str, Any]:
        """Your own 20–1000 rows (CSV, Parquet) or a zip of images in label folders; kept a day or until deleted."""
        source = Path(path)
        files = {"file": (source.name, source.read_bytes(), "application/octet-stream")}
        return dict(self.request("POST", "/v1/sample-sets", data=form, files=files, timeout=300.0).json())

    def delete_samples(self, sample_set_id: str) -> dict[str, Any]:
        """Delete a sample set now; the answer is the receipt."""
        return dict(self.request("DELETE", f"/v1/sample-sets/{sample_set_id}").json())

    def choose(self, sample_set_id: str, *, wait: bool = True, progress: Progress | None = None, **request: Any) -> Any:
        """Rank the shelf on a sample set. `request`: task, family, models, label_column, columns …"""
        choice = self.post("/v1/choose", {"sample_set_id": sample_set_id, **request})
        while wait and choice.get("state") in {"queued", "running"}:
            time.sleep(0.2)
            choice = self.get(f"/v1/choose/{choice['id']}")
            if progress:
                progress(float(choice.get("progress", 0.0)), str(choice.get("state")))
        return choice

    # --- adapt --------------------------------------------------------------------------------------------------------
    def recipes(self) -> list[dict[str, Any]]:
        return list(self.get("/v1/recipes")["items"])

    def adapt(self, recipe: str, *, wait: bool = True, progress: Progress | None = None, **request: Any) -> Any:
        """Start an adaptation. `request`: model, sample_set_id, name, label_column, columns, params."""
        job = self.post("/v1/adapt", {"recipe": recipe, **request})
        return self.wait_for(job["id"], progress) if wait else job

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/adapt/{job_id}"))

    def cancel(self, job_id: str) -> dict[str, Any]:
        return dict(self.post(f"/v1/adapt/{job_id}/cancel"))

    def wait_for(self, job_id: str, progress: Progress | None = None) -> dict[str, Any]:
        """Poll a job to its end; a failed one is raised as `MarketError` with the job's own code and remedy."""
        while True:
            job = self.job(job_id)
            if progress:
                progress(float(job.get("progress", 0.0)), str(job.get("stage") or job.get("state")))
            if job["state"] in JOB_ENDED:
                break
            time.sleep(0.5)
        if job["state"] == "failed":
            raise MarketError(422, job.get("error") or {"code": "JOB_FAILED", "message": "the job failed"})
        return job

    # --- use ----------------------------------------------------------------------------------------------------------
    def use(self, name: str, inputs: Any, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Call a model with named features: one row (a dict) or many (a list of dicts).

        One row carries an Idempotency-Key of its own, so that it can be sent again and is charged once. Many rows carry
        one only if you give it (a key covers at most one run of the model).
        """
        key = idempotency_key or (_new_key() if isinstance(inputs, Mapping) else None)
        headers = {"Idempotency-Key": key} if key else {}
        return dict(self.request("POST", f"/v1/use/{name}", json={"inputs": inputs}, headers=headers).json())

    def use_csv(self, name: str, content: bytes | str, *, idempotency_key: str | None = None) -> str:
        """CSV in, CSV out with the prediction's columns added."""
        body = content.encode() if isinstance(content, str) else content
        headers = {"Content-Type": "text/csv", "Accept": "text/csv"}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        return self.request("POST", f"/v1/use/{name}", content=body, headers=headers, timeout=300.0).text

    def use_image(self, name: str, image: str | Path | bytes, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Call a model with one picture; charged once however often it has to be sent."""
        body = image if isinstance(image, bytes) else Path(image).read_bytes()
        kind = "image/png" if body.startswith(b"\x89PNG") else "image/jpeg"
        headers = {"Content-Type": kind, "Idempotency-Key": idempotency_key or _new_key()}
        return dict(self.request("POST", f"/v1/use/{name}", content=body, headers=headers).json())

    def infer(
        self, name: str, inputs: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None, **request: Any
    ) -> dict[str, Any]:
        """Open Inference Protocol V2, JSON tensors; charged once however often it has to be sent."""
        path = f"/v2/models/{name.replace('/', '--', 1)}/infer"
        headers = {"Idempotency-Key": idempotency_key or _new_key()}
        return dict(self.post(path, {"inputs": list(inputs), **request}, headers=headers))

    # --- keys, money -----------------------------------------------------------------------------------------------
    def keys(self) -> list[dict[str, Any]]:
        return list(self.get("/api/v1/keys")["items"])

    def create_key(self, name: str, scopes: Sequence[str] = ("use",), **limits: int) -> dict[str, Any]:
        """The secret is in the answer, this once. Limits: rate_per_s, burst, concurrency; 0 or none: the node's."""
        return dict(self.post("/api/v1/keys", {"name": name, "scopes": list(scopes), **limits}))

    def limit_key(self, key_id: str, **limits: int) -> dict[str, Any]:
        """Set rate_per_s, burst and concurrency of a key; what is not named becomes 0, the node's."""
        return dict(self.request("PUT", f"/api/v1/keys/{key_id}/limits", json=limits).json())

    def rotate_key(self, key_id: str, overlap_hours: int = 24) -> dict[str, Any]:
        return dict(self.post(f"/api/v1/keys/{key_id}/rotate", {"overlap_ms": overlap_hours * 3_600_000}))

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return dict(self.request("DELETE", f"/api/v1/keys/{key_id}").json())

    def vouchers(self) -> list[dict[str, Any]]:
        return list(self.get("/api/v1/vouchers")["items"])

    def attach_evidence(self, application_id: str, code: str, path: str | Path) -> dict[str, Any]:
        """Hand in one file of evidence of an application; the answer has its SHA-256."""
        source = Path(path)
        files = {"file": (source.name, source.read_bytes(), "application/octet-stream")}
        where = f"/api/v1/applications/{application_id}/evidence"
        return dict(self.request("POST", where, data={"code": code}, files=files, timeout=300.0).json())

    def evidence(self, file_id: str) -> bytes:
        """The content of a file of evidence."""
        return self.request("GET", f"/api/v1/evidence/{file_id}/content", timeout=300.0).content

    def subscribe(self, name: str, **terms: Any) -> dict[str, Any]:
        """Take a listing: contract_fen, on_voucher_end ("refuse" or "self_pay"), monthly_cap_fen."""
        return dict(self.post("/api/v1/subscriptions", {"listing": name, **terms}))

    def usage(self, **filters: Any) -> dict[str, Any]:
        return dict(self.get("/api/v1/usage", **filters))

    def all_usage(self, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every usage record, page after page."""
        page = 1
        while True:
            answer = self.usage(page=page, **filters)
            yield from answer["items"]
            if not answer["items"] or page * len(answer["items"]) >= answer["total"]:
                return
            page += 1

    def trace(self, usage_id: str) -> dict[str, Any]:
        """From a usage id to the price, the voucher line and the posting."""
        return dict(self.get(f"/api/v1/usage/{usage_id}"))

    def statement(self, month: str, format: str = "json") -> bytes:
        """The month's statement (YYYY-MM, Asia/Shanghai) as json, csv or xlsx bytes."""
        return self.request("GET", "/api/v1/statements", params={"month": month, "format": format}).content


def _new_key() -> str:
    return uuid.uuid4().hex


def _refusal(response: httpx.Response) -> dict[str, Any]:
    """The error body of any surface: {"error": {…}}, Open Inference's {"error": "…", "code": …}, or plain text."""
    try:
        body = response.json()
    except ValueError:
        return {"code": f"HTTP_{response.status_code}", "message": response.text[:300]}
    error = body.get("error", body) if isinstance(body, dict) else {}
    if isinstance(error, dict):
        return error
    return {**body, "message": body.get("message") or str(error)}


def _upload_name(source: Path) -> str:
    return f"{source.name}.zip" if source.is_dir() else source.name


def _as_upload(source: Path) -> bytes:
    return _zipped(source) if source.is_dir() else source.read_bytes()


def _zipped(folder: Path) -> bytes:
    """A zip of a folder in memory, in name order (an already zipped file passes through)."""
    if folder.is_file():
        return folder.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return buffer.getvalue()
