"""The MLflow endpoints that the market passes on, as data: deny by default.

An endpoint names the fields of its request that hold ids (a dotted path goes into objects and, element by element, into
lists; `?` marks an optional one). Each id must be the caller's before the request goes on. Endpoints whose request or
answer has to be changed, or that touch the registry, name a `rule` instead (`rules.py`, `registry.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

EXPERIMENT, RUN, MODEL, TRACE = "experiment", "run", "logged model", "trace"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`ids` [(kind, field)]; `writes`: the key needs the scope `publish`; `rule` "" for plain forwarding."""

    method: str
    path: str
    writes: bool
    ids: tuple[tuple[str, str], ...]
    rule: str
    pattern: re.Pattern[str]


def _endpoint(line: str, *ids: tuple[str, str], rule: str = "", reads: bool = False) -> Endpoint:
    """`line` e.g. "POST 2.0/mlflow/runs/update"; only a GET, or what `reads` says, works without `publish`."""
    method, path = line.split(" ")
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
    return Endpoint(method, path, not (reads or method == "GET"), ids, rule, pattern)


_TRACKING = (
    _endpoint("GET 2.0/mlflow/experiments/get", (EXPERIMENT, "experiment_id"), rule="show_experiments"),
    _endpoint("GET 2.0/mlflow/experiments/get-by-name", rule="experiment_by_name"),
    _endpoint("POST 2.0/mlflow/experiments/create", rule="create_experiment"),
    _endpoint("POST 2.0/mlflow/experiments/search", rule="search_experiments", reads=True),
    _endpoint("GET 2.0/mlflow/experiments/search", rule="search_experiments"),
    _endpoint("POST 2.0/mlflow/experiments/update", (EXPERIMENT, "experiment_id"), rule="rename_experiment"),
    _endpoint("POST 2.0/mlflow/experiments/delete", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/experiments/restore", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/experiments/set-experiment-tag", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/experiments/delete-experiment-tag", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/runs/create", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/runs/search", (EXPERIMENT, "experiment_ids"), reads=True),
    _endpoint("GET 2.0/mlflow/runs/get", (RUN, "run_id")),
    *(
        _endpoint(f"POST 2.0/mlflow/runs/{verb}", (RUN, "run_id"))
        for verb in ("update", "delete", "restore", "log-parameter", "set-tag", "delete-tag", "log-model")
    ),
    _endpoint("POST 2.0/mlflow/runs/log-metric", (RUN, "run_id"), (MODEL, "model_id?")),
    _endpoint("POST 2.0/mlflow/runs/log-batch", (RUN, "run_id"), (MODEL, "metrics.model_id?")),
    _endpoint("POST 2.0/mlflow/runs/log-inputs", (RUN, "run_id"), (MODEL, "models.model_id?")),
    _endpoint("POST 2.0/mlflow/runs/outputs", (RUN, "run_id"), (MODEL, "models.model_id?")),
    _endpoint("GET 2.0/mlflow/artifacts/list", (RUN, "run_id")),
    _endpoint("GET 2.0/mlflow/metrics/get-history", (RUN, "run_id")),
    _endpoint("GET 2.0/mlflow/metrics/get-history-bulk-interval", (RUN, "run_ids")),
    _endpoint("POST 2.0/mlflow/logged-models", (EXPERIMENT, "experiment_id"), (RUN, "source_run_id?")),
    _endpoint("POST 2.0/mlflow/logged-models/search", (EXPERIMENT, "experiment_ids"), reads=True),
    _endpoint("GET 2.0/mlflow/logged-models/{model_id}", rule="read_logged_model"),
    _endpoint("GET 2.0/mlflow/logged-models/{model_id}/artifacts/directories", rule="read_logged_model"),
    _endpoint("PATCH 2.0/mlflow/logged-models/{model_id}", (MODEL, "model_id")),
    _endpoint("DELETE 2.0/mlflow/logged-models/{model_id}", (MODEL, "model_id")),
    _endpoint("PATCH 2.0/mlflow/logged-models/{model_id}/tags", (MODEL, "model_id")),
    _endpoint("DELETE 2.0/mlflow/logged-models/{model_id}/tags/{tag_key}", (MODEL, "model_id")),
    _endpoint("POST 2.0/mlflow/logged-models/{model_id}/params", (MODEL, "model_id")),
    _endpoint(
        "POST 3.0/mlflow/traces",
        (EXPERIMENT, "trace.trace_info.trace_location.mlflow_experiment.experiment_id"),
        rule="start_trace",
    ),
    _endpoint("POST 3.0/mlflow/traces/search", (EXPERIMENT, "locations.mlflow_experiment.experiment_id"), reads=True),
    _endpoint("GET 3.0/mlflow/traces/get", (TRACE, "trace_id")),
    _endpoint("GET 3.0/mlflow/traces/batchGet", (TRACE, "trace_ids")),
    _endpoint("GET 3.0/mlflow/traces/{trace_id}", (TRACE, "trace_id")),
    _endpoint("PATCH 3.0/mlflow/traces/{trace_id}/tags", (TRACE, "trace_id")),
    _endpoint("DELETE 3.0/mlflow/traces/{trace_id}/tags", (TRACE, "trace_id")),
    _endpoint("POST 3.0/mlflow/traces/delete-traces", (EXPERIMENT, "experiment_id")),
    _endpoint("POST 2.0/mlflow/traces/delete-traces", (EXPERIMENT, "experiment_id")),
    _endpoint("GET 3.0/mlflow/server-info"),
)

_REGISTRY = (
    _endpoint("POST 2.0/mlflow/registered-models/create", rule="create_model"),
    _endpoint("GET 2.0/mlflow/registered-models/get", rule="get_model"),
    _endpoint("GET 2.0/mlflow/registered-models/search", rule="search_models"),
    _endpoint("GET 2.0/mlflow/registered-models/get-latest-versions", rule="latest_versions"),
    _endpoint("POST 2.0/mlflow/registered-models/get-latest-versions", rule="latest_versions", reads=True),
    _endpoint("PATCH 2.0/mlflow/registered-models/update", rule="change_model"),
    _endpoint("DELETE 2.0/mlflow/registered-models/delete", rule="delete_model"),
    _endpoint("POST 2.0/mlflow/registered-models/set-tag", rule="change_model"),
    _endpoint("DELETE 2.0/mlflow/registered-models/delete-tag", rule="change_model"),
    _endpoint("POST 2.0/mlflow/registered-models/rename", rule="keep_published"),
    _endpoint("POST 2.0/mlflow/registered-models/alias", rule="set_alias"),
    _endpoint("DELETE 2.0/mlflow/registered-models/alias", rule="delete_alias"),
    _endpoint("GET 2.0/mlflow/registered-models/alias", rule="by_alias"),
    _endpoint("POST 2.0/mlflow/model-versions/create", rule="create_version"),
    _endpoint("GET 2.0/mlflow/model-versions/get", rule="get_version"),
    _endpoint("GET 2.0/mlflow/model-versions/search", rule="search_versions"),
    _endpoint("GET 2.0/mlflow/model-versions/get-download-uri", rule="get_version"),
    _endpoint("PATCH 2.0/mlflow/model-versions/update", rule="change_version"),
    _endpoint("POST 2.0/mlflow/model-versions/set-tag", rule="change_version"),
    _endpoint("DELETE 2.0/mlflow/model-versions/delete-tag", rule="change_version"),
    _endpoint("DELETE 2.0/mlflow/model-versions/delete", rule="keep_published"),
    _endpoint("POST 2.0/mlflow/model-versions/transition-stage", rule="keep_published"),
)

ENDPOINTS = (*_TRACKING, *_REGISTRY)


def find_endpoint(
    method: str, path: str, table: Iterable[Endpoint] = ENDPOINTS
) -> tuple[Endpoint, dict[str, str]] | None:
    """The endpoint for a path below `/api/`, and what its placeholders stand for; literal paths come before others."""
    for endpoint in table:
        if endpoint.method == method and (match := endpoint.pattern.fullmatch(path)):
            return endpoint, match.groupdict()
    return None
