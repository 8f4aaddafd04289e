"""One case, published with its golden data and called over HTTP: equal within tolerance, failed or refused; why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import httpx
import numpy as np

from tests.conformance.cases import Arrays, Case
from tests.conformance.wire import HEADER, binary_request, datatype_of, json_request, read_response

Outcome = Literal["passed", "failed", "refused"]


@dataclass(frozen=True)
class Result:
    """`refused`: the inspection's rules kept it out (codes in `why`); `failed`: anything else that went wrong."""

    case: Case
    outcome: Outcome
    why: str = ""
    ways: tuple[str, ...] = ()


def run_case(client: httpx.Client, vendor: str, case: Case) -> Result:
    """Publish `vendor`/slug privately, call it in every encoding that its types allow, compare. Never raises."""
    try:
        refusal = _publish(client, vendor, case)
        if refusal is not None:
            return refusal
        ways = tuple(
            way for way, allowed in (("json", case.json_servable), ("binary", case.binary_servable)) if allowed
        )
        for way in ways:
            why = difference(case, _infer(client, vendor, case, way))
            if why:
                return Result(case, "failed", f"{way}: {why}", ways)
        return Result(case, "passed", ways=ways)
    except (httpx.HTTPError, ValueError, KeyError, AssertionError) as error:
        return Result(case, "failed", f"{type(error).__name__}: {error}"[:300])


def _publish(client: httpx.Client, vendor: str, case: Case) -> Result | None:
    answer = client.post(
        "/api/v1/publish",
        data={"name": f"{vendor}/{case.slug}", "private": "true"},
        files={"file": ("model.onnx", case.model), "golden": ("golden.zip", case.golden_zip)},
    )
    if answer.status_code == 201:
        made = answer.json()
        golden = made["report"]["golden"]
        if golden.get("cases") != 1 or golden.get("passed") != 1:
            return Result(case, "failed", f"published, but its golden data was not checked: {golden}")
        return None
    error = answer.json().get("error", {})
    if error.get("code") != "INSPECTION_FAILED":
        return Result(case, "failed", f"publish {answer.status_code}: {error.get('code')} {error.get('message')}"[:300])
    findings = error.get("details", {}).get("report", {}).get("findings", [])
    errors = [f"{each['code']} {each['en']}" for each in findings if each["severity"] == "error"]
    return Result(case, "refused", "; ".join(errors)[:300])


def _infer(client: httpx.Client, vendor: str, case: Case, way: str) -> Arrays:
    path = f"/v2/models/{vendor}--{case.slug}/infer"
    if way == "json":
        body, headers = json_request(case.inputs(), case.output_names), {"Content-Type": "application/json"}
    else:
        body, headers = binary_request(case.inputs(), case.output_names)
    answer = client.post(path, content=body, headers=headers)
    if answer.status_code != 200:
        raise ValueError(f"infer ({way}) {answer.status_code}: {answer.text[:200]}")
    return read_response(answer.content, answer.headers.get(HEADER))


def difference(case: Case, actual: Arrays) -> str:
    """Empty where names, types, shapes and values agree; NaN equals NaN, text and booleans exactly."""
    for name, want in case.expected().items():
        got = actual.get(name)
        if got is None:
            return f"no output {name!r}; got {sorted(actual)}"
        if datatype_of(got) != datatype_of(want):
            return f"{name}: {datatype_of(got)}, expected {datatype_of(want)}"
        if got.shape != want.shape:
            return f"{name}: shape {got.shape}, expected {want.shape}"
        if want.dtype.kind in "Ob":
            if not np.array_equal(got, want):
                return f"{name}: values differ"
            continue
        wide = np.float64 if want.dtype.kind in "fV" else want.dtype
        close = np.isclose(got.astype(wide), want.astype(wide), rtol=case.rtol, atol=case.atol, equal_nan=True)
        if not np.all(close):
            return f"{name}: {np.count_nonzero(~close)} of {want.size} values differ"
    return ""
