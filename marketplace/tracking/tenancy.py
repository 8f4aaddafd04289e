"""Whose an experiment is, and everything in it.

In MLflow an organisation's experiment is named `<organisation id>/<its name>`: the prefix is the ownership, and is put
on and taken off on the way. MLflow's experiment "0" (what a client uses that names none) stands for the organisation's
own `Default`. Runs, logged models, traces and artifacts belong to whoever owns their experiment.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from marketplace.tracking.refusals import bad_request, not_found
from marketplace.tracking.upstream import Answer, Upstream

DEFAULT_ID, DEFAULT_NAME = "0", "Default"
MAX_CACHED = 20_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME_FILTER = re.compile(
    r"(?<![\w.`\"'])((?:attributes?\.|attr\.)?[`\"]?name[`\"]?\s*(?:=|!=|I?LIKE)\s*')", re.IGNORECASE
)


class Tenancy:
    """Resolves ids to owners. What it remembers never changes: an experiment keeps its prefix, a run its place."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._experiment_of: OrderedDict[tuple[str, str], str] = OrderedDict()  # (kind, id) → experiment id
        self._owner_of: OrderedDict[str, str] = OrderedDict()  # experiment id → organisation id, "" the market's
        self._default_of: OrderedDict[str, str] = OrderedDict()  # organisation id → experiment id

    async def experiment(self, organisation: str, given: Any) -> str:
        """The experiment id to use for one that the caller names; `NotFound` for one that is not the caller's."""
        wanted = check_id(given, "experiment_id")
        if wanted == DEFAULT_ID:
            return await self._default(organisation)
        if await self.owner(wanted) != organisation:
            raise not_found("experiment", wanted)
        return wanted

    async def owner(self, experiment_id: str) -> str:
        """The organisation id in the experiment's name; "" for the market's own and for what is not there."""
        if experiment_id not in self._owner_of:
            answer = await self._upstream.call(
                "GET", "/api/2.0/mlflow/experiments/get", query={"experiment_id": [experiment_id]}
            )
            if not answer.ok:
                return ""
            owner, separator, _ = str(answer.body["experiment"]["name"]).partition("/")
            _remember(self._owner_of, experiment_id, owner if separator and owner.startswith("org_") else "")
        return self._owner_of[experiment_id]

    async def check(self, organisation: str, kind: str, given: Any) -> str:
        """The id of a run, logged model or trace of the caller's; `NotFound` otherwise."""
        wanted = check_id(given, kind)
        experiment = await self.experiment_of(kind, wanted)
        if not experiment or await self.owner(experiment) != organisation:
            raise not_found(kind, wanted)
        return wanted

    async def experiment_of(self, kind: str, wanted: str) -> str:
        """The experiment that a run, logged model or trace lies in; "" where there is no such thing."""
        if (kind, wanted) not in self._experiment_of:
            answer = await self._look_up(kind, wanted)
            if not answer.ok:
                return ""
            _remember(self._experiment_of, (kind, wanted), _experiment_in(kind, answer.body))
        return self._experiment_of[(kind, wanted)]

    async def _look_up(self, kind: str, wanted: str) -> Answer:
        if kind == "run":
            return await self._upstream.call("GET", "/api/2.0/mlflow/runs/get", query={"run_id": [wanted]})
        if kind == "logged model":
            return await self._upstream.call("GET", f"/api/2.0/mlflow/logged-models/{wanted}")
        return await self._upstream.call("GET", f"/api/3.0/mlflow/traces/{wanted}")

    async def _default(self, organisation: str) -> str:
        """The organisation's own `Default`, made on first use."""
        if organisation not in self._default_of:
            name = outer_name(organisation, DEFAULT_NAME)
            made = await self._upstream.call("POST", "/api/2.0/mlflow/experiments/create", body={"name": name})
            if made.ok:
                found = str(made.body["experiment_id"])
            else:
                answer = await self._upstream.call(
                    "GET", "/api/2.0/mlflow/experiments/get-by-name", query={"experiment_name": [name]}
                )
                if not answer.ok:
                    raise not_found("experiment", DEFAULT_NAME)
                found = str(answer.body["experiment"]["experiment_id"])
            _remember(self._default_of, organisation, found)
            _remember(self._owner_of, found, organisation)
        return self._default_of[organisation]


def outer_name(organisation: str, name: str) -> str:
    """The name in MLflow of an organisation's experiment."""
    return f"{organisation}/{name}"


def inner_name(organisation: str, name: str) -> str:
    """The name that the organisation knows."""
    return name.removeprefix(f"{organisation}/")


def own_filter(organisation: str, given: str) -> str:
    """An experiment filter for the organisation's own only; literals compared with `name` take the prefix.

    Ours comes first: MLflow joins clauses with AND alone, so what follows can only narrow it.
    """
    theirs = _NAME_FILTER.sub(lambda match: f"{match[1]}{organisation}/", given.strip())
    ours = f"name LIKE '{organisation}/%'"
    return f"{ours} AND {theirs}" if theirs else ours


def check_id(given: Any, field: str) -> str:
    """An id as MLflow makes them; `BadInput` for anything else, so that none can be a path or a filter."""
    wanted = str(given) if isinstance(given, (str, int)) else ""
    if not _ID.fullmatch(wanted):
        raise bad_request(f"“{field}”缺失或无效", f"{field} is missing or is not an id", field)
    return wanted


def _experiment_in(kind: str, body: dict[str, Any]) -> str:
    if kind == "run":
        return str(body["run"]["info"]["experiment_id"])
    if kind == "logged model":
        return str(body["model"]["info"]["experiment_id"])
    place = body["trace"]["trace_info"]["trace_location"]
    return str(place.get("mlflow_experiment", {}).get("experiment_id", ""))


def _remember(cache: OrderedDict[Any, str], key: Any, value: str) -> None:
    cache[key] = value
    if len(cache) > MAX_CACHED:
        cache.popitem(last=False)
