"""Rules of experiments, logged models and traces: where a request or an answer has to be changed on its way."""

from __future__ import annotations

from typing import Any

from marketplace.tracking.artifacts import Artifacts, Place
from marketplace.tracking.calls import Call
from marketplace.tracking.refusals import bad_request, not_found, not_offered
from marketplace.tracking.tenancy import DEFAULT_NAME, Tenancy, check_id, inner_name, outer_name, own_filter
from marketplace.tracking.upstream import Answer, Upstream

MAX_NAME_CHARACTERS = 300
API = "/api/2.0/mlflow"


class TrackingRules:
    """Each method is a rule that `endpoints` names: `await rule(call) → Answer`."""

    def __init__(self, upstream: Upstream, tenancy: Tenancy, artifacts: Artifacts) -> None:
        self._upstream, self._tenancy, self._artifacts = upstream, tenancy, artifacts

    async def forward(self, call: Call) -> Answer:
        """The call as it now stands. A GET has no body, everything else no query: MLflow would read either."""
        if call.method == "GET":
            return await self._upstream.call("GET", call.path, query=call.query)
        return await self._upstream.call(call.method, call.path, body=call.body)

    async def show_experiments(self, call: Call) -> Answer:
        """Forward, and show experiments by the names that the organisation knows."""
        answer = await self.forward(call)
        shown = [answer.body["experiment"]] if "experiment" in answer.body else answer.body.get("experiments", [])
        for each in shown:
            each["name"] = inner_name(call.organisation, str(each.get("name", "")))
        if "message" in answer.body:
            answer.body["message"] = str(answer.body["message"]).replace(f"{call.organisation}/", "")
        return answer

    async def experiment_by_name(self, call: Call) -> Answer:
        name = _experiment_name(call.text("experiment_name"))
        if name == DEFAULT_NAME:
            await self._tenancy.experiment(call.organisation, "0")
        call.query = {"experiment_name": [outer_name(call.organisation, name)]}
        return await self.show_experiments(call)

    async def create_experiment(self, call: Call) -> Answer:
        """Made under the organisation's prefix. Where artifacts go is the market's to say."""
        if call.body.get("artifact_location"):
            raise not_offered("artifact_location: artifacts are kept by the market")
        name = _experiment_name(call.text("name"))
        call.body = {"name": outer_name(call.organisation, name), "tags": call.body.get("tags") or []}
        return await self.show_experiments(call)

    async def rename_experiment(self, call: Call) -> Answer:
        call.body["new_name"] = outer_name(call.organisation, _experiment_name(call.text("new_name")))
        return await self.show_experiments(call)

    async def search_experiments(self, call: Call) -> Answer:
        """Only the organisation's own: by a clause put before the caller's filter, and once more on the answer."""
        call.put("filter", own_filter(call.organisation, call.text("filter")))
        answer = await self.forward(call)
        mine = f"{call.organisation}/"
        if answer.ok:
            found = answer.body.get("experiments", [])
            answer.body["experiments"] = [
                each | {"name": inner_name(call.organisation, str(each["name"]))}
                for each in found
                if str(each.get("name", "")).startswith(mine)
            ]
        return answer

    async def read_logged_model(self, call: Call) -> Answer:
        """One's own, or what a version that one may download was registered from."""
        wanted = check_id(call.params["model_id"], "model_id")
        experiment = await self._tenancy.experiment_of("logged model", wanted)
        mine = bool(experiment) and await self._tenancy.owner(experiment) == call.organisation
        place = Place(f"{experiment}/models/{wanted}", experiment, "models", wanted)
        if not mine and not (experiment and await self._artifacts.shared(call.actor, place)):
            raise not_found("logged model", wanted)
        path = call.text("artifact_directory_path")
        if ".." in path.split("/") or "%" in path or "\\" in path:
            raise bad_request("目录无效", "the directory is not valid", "artifact_directory_path")
        answer = await self.forward(call)
        return answer if mine else Answer(answer.status, _without_notes(answer.body))

    async def start_trace(self, call: Call) -> Answer:
        """A trace that exists keeps its owner: its id cannot be taken by sending it again."""
        info: Any = call.body.get("trace", {}).get("trace_info", {})
        given = info.get("trace_id") or info.get("request_id")
        if given:
            wanted = check_id(given, "trace_id")
            experiment = await self._tenancy.experiment_of("trace", wanted)
            if experiment and await self._tenancy.owner(experiment) != call.organisation:
                raise not_found("trace", wanted)
        return await self.forward(call)


def _experiment_name(name: str) -> str:
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise bad_request(
            f"实验名称应为 1 至 {MAX_NAME_CHARACTERS} 个字符",
            f"an experiment's name has 1 to {MAX_NAME_CHARACTERS} characters",
            "name",
        )
    return name


def _without_notes(body: dict[str, Any]) -> dict[str, Any]:
    """A logged model as a stranger sees it: where its files are and how it stands, not its owner's notes."""
    model = body.get("model")
    if not isinstance(model, dict):
        return body
    info = {key: value for key, value in model.get("info", {}).items() if key != "tags"}
    return {"model": {"info": info, "data": {}}}
