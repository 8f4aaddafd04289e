"""`/mlflow/**` with MLflow's own, unmodified client: logging, registering, aliases, downloads, and whose they are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import rpc
from mlflow.protos.service_pb2 import MlflowService
from mlflow.tracking import MlflowClient
from requests.exceptions import HTTPError
from sqlmodel import select
from ulid import ULID

from marketplace.app import RequestIds
from marketplace.catalogue import aliases as alias_rows
from marketplace.catalogue.publishing import publish
from marketplace.catalogue.tables import Alias, Listing, ModelVersion
from marketplace.db import reading, transaction
from marketplace.keys.service import create_key
from marketplace.market import Market
from marketplace.tracking.endpoints import ENDPOINTS, EXPERIMENT, MODEL, RUN, TRACE, Endpoint
from marketplace.tracking.proxy import MlflowProxy
from model_store.errors import Refusal
from model_store.mlflow_store import MlflowStore
from model_store.runtime import load_graph
from serving.ports import Principal
from tests.marketplace.linear_models import graph_of, linear_bundle, weights_of
from tests.marketplace.shelf import add_organisation
from tests.registry import running_child

ROWS = np.random.default_rng(5).normal(size=(3, 16)).astype(np.float32)


@dataclass
class Surface:
    """A market with its MLflow surface served on `url`; two vendors and their keys."""

    market: Market
    url: str
    acme: str
    other: str
    keys: dict[str, str]

    def http(self, slug: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/api", headers={"Authorization": f"Bearer {self.keys[slug]}"}, timeout=60
        )

    def rows(self, kind: type) -> list[Any]:
        with reading(self.market.engine) as session:
            return list(session.exec(select(kind)))

    def principal(self, slug: str) -> Principal:
        return Principal("key", f"org_{slug}", "vendor", frozenset({"use"}))

    def shelve(self, name: str) -> None:
        """Put every version of a listing on the shelf."""
        with transaction(self.market.engine) as session:
            listing = session.exec(select(Listing).where(Listing.name == name)).one()
            listing.status, listing.visibility = "listed", "public"
            for version in session.exec(select(ModelVersion).where(ModelVersion.listing_id == listing.id)):
                version.state = "listed"
                session.add(version)
            session.add(listing)
        self.market.catalogue_changed()


@pytest.fixture
def surface(market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surface]:
    child = running_child()
    market.store = MlflowStore(child.base_url, child.headers, child.artifact_folder)
    acme, other = (f"{each}{str(ULID()).lower()}" for each in ("a", "b"))
    keys = {}
    with transaction(market.engine) as session:
        for slug in (acme, other):
            organisation = add_organisation(session, slug)
            _, keys[slug] = create_key(session, organisation, name="k", scopes=["use", "publish"], actor="t")
    proxy = MlflowProxy(market, child.base_url, child.headers)
    server = uvicorn.Server(uvicorn.Config(RequestIds(proxy), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mlflow"
    for name, value in {
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_TOKEN": keys[acme],
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(url)
    yield Surface(market, url, acme, other, keys)
    server.should_exit = True
    thread.join()


@pytest.fixture
def as_other(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> Callable[[], MlflowClient]:
    """Become the other organisation; answers its client."""

    def become() -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", surface.keys[surface.other])
        return MlflowClient()

    return become


def log(name: str | None, seed: int = 1, **more: Any) -> Any:
    """Log a model; its requirements are named, because inferring them takes mlflow seconds."""
    given = {"name": "model", "registered_model_name": name, "pip_requirements": ["onnx"]} | more
    return mlflow.onnx.log_model(graph_of(weights_of(seed)), **given)


# --- the way through --------------------------------------------------------------------------------------------------


def test_a_logged_model_is_a_version_that_its_organisation_can_call(surface: Surface) -> None:
    name = f"{surface.acme}--linear"
    info = mlflow.onnx.log_model(graph_of(weights_of(1)), name="model", registered_model_name=name)
    assert str(info.registered_model_version) == "1"
    served = surface.market.bundles.resolve(f"{surface.acme}/linear", None, surface.principal(surface.acme))
    (answer,) = load_graph(served.bundle / "model.onnx").run({"x": ROWS}).values()
    np.testing.assert_allclose(answer, ROWS @ weights_of(1) + 0.5, rtol=1e-5)
    (listing,), (version,) = surface.rows(Listing), surface.rows(ModelVersion)
    assert (listing.visibility, version.number, version.state) == ("private", 1, "inspected")
    assert [spec["name"] for spec in version.manifest["inputs"]] == ["x"]
    assert not [stored for stored in surface.market.store.pending() if stored.name == listing.name]
    with pytest.raises(Refusal):
        surface.market.bundles.resolve(listing.name, None, surface.principal(surface.other))


def test_version_numbers_are_the_same_on_both_sides(surface: Surface) -> None:
    for seed in (1, 2, 3):
        log(f"{surface.acme}--linear", seed)
    registered = MlflowClient().search_model_versions(f"name='{surface.acme}--linear'")
    assert sorted(int(version.version) for version in registered) == [1, 2, 3]
    assert sorted(version.number for version in surface.rows(ModelVersion)) == [1, 2, 3]


def test_a_model_loads_by_version_and_by_alias(surface: Surface) -> None:
    for seed in (1, 2):
        log(f"{surface.acme}--linear", seed)
    MlflowClient().set_registered_model_alias(f"{surface.acme}--linear", "champion", "1")
    for uri, seed in ((f"models:/{surface.acme}--linear/2", 2), (f"models:/{surface.acme}--linear@champion", 1)):
        loaded = mlflow.onnx.load_model(uri)
        assert loaded.SerializeToString() == graph_of(weights_of(seed)).SerializeToString()


def test_what_was_published_without_mlflow_loads_with_it(surface: Surface, tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "made", f"{surface.acme}/linear", seed=7)
    publish(surface.market, bundle.path, organisation_id=f"org_{surface.acme}", published_by="m", private=False)
    uri = f"models:/{surface.acme}--linear/1"
    assert mlflow.onnx.load_model(uri).graph.name == "linear"
    assert {each.name for each in mlflow.models.get_model_info(uri).signature.inputs} == {"x"}
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "down")))
    assert json.loads((folder / "manifest.json").read_text())["name"] == f"{surface.acme}/linear"
    answer = mlflow.pyfunc.load_model(uri).predict({"x": ROWS})
    np.testing.assert_allclose(answer["y"], ROWS @ weights_of(7) + 0.5, rtol=1e-5)


def test_an_alias_set_on_either_side_is_on_both(surface: Surface) -> None:
    for seed in (1, 2):
        log(name := f"{surface.acme}--linear", seed)
    client = MlflowClient()
    client.set_registered_model_alias(name, "champion", "1")
    resolve = surface.market.bundles.resolve
    owner = surface.principal(surface.acme)
    assert resolve(f"{surface.acme}/linear", "champion", owner).version == 1
    (listing,) = surface.rows(Listing)
    surface.market.store.set_alias(name, "shadow", 2)
    with transaction(surface.market.engine) as session:
        version = session.exec(select(ModelVersion).where(ModelVersion.number == 2)).one()
        alias_rows.set_alias(session, listing, "shadow", version, actor="m")
    assert client.get_model_version_by_alias(name, "shadow").version == "2"
    client.delete_registered_model_alias(name, "champion")
    assert {(row.alias, row.number) for row in surface.rows(Alias)} == {("shadow", 2)}


def test_files_logged_with_the_model_describe_it(surface: Surface, tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path / "made", "somebody/else")
    extra = [str(bundle.path / "manifest.json"), str(bundle.path / "card.md")]
    log(f"{surface.acme}--linear", extra_files=extra, metadata={"algomart_visibility": "public"})
    (listing,), (version,) = surface.rows(Listing), surface.rows(ModelVersion)
    assert (listing.name, listing.title_zh, listing.visibility) == (f"{surface.acme}/linear", "线性", "public")
    assert set(version.manifest["files"]) == {"model.onnx", "card.md"}


def test_weights_that_mlflow_keeps_beside_the_graph_come_along(surface: Surface) -> None:
    weights = np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)
    model = graph_of(weights, out=64)
    mlflow.onnx.log_model(model, name="model", registered_model_name=f"{surface.acme}--wide", pip_requirements=["onnx"])
    served = surface.market.bundles.resolve(f"{surface.acme}/wide", None, surface.principal(surface.acme))
    assert len([file for file in served.bundle.iterdir() if file.name != "manifest.json"]) == 2
    (answer,) = load_graph(served.bundle / "model.onnx").run({"x": ROWS}).values()
    np.testing.assert_allclose(answer, ROWS @ weights + 0.5, rtol=1e-4)


def test_runs_metrics_and_files_are_kept(surface: Surface) -> None:
    with mlflow.start_run() as run:
        mlflow.log_param("depth", 3)
        mlflow.log_metrics({"mae": 0.25}, step=1)
        mlflow.log_text("轴承", "notes/zh.txt")
        log(None)
    found = mlflow.get_run(run.info.run_id)
    assert (found.data.params["depth"], found.data.metrics["mae"]) == ("3", 0.25)
    assert mlflow.artifacts.load_text(f"{found.info.artifact_uri}/notes/zh.txt") == "轴承"
    assert [each.name for each in MlflowClient().search_experiments()] == ["Default"]
    assert surface.rows(ModelVersion) == []


def test_two_organisations_may_name_experiments_alike(surface: Surface, as_other) -> None:
    mine = MlflowClient().create_experiment("bearings")
    theirs = as_other().create_experiment("bearings")
    assert mine != theirs
    assert [each.experiment_id for each in MlflowClient().search_experiments(filter_string="name = 'bearings'")] == [
        theirs
    ]
    MlflowClient().rename_experiment(theirs, "gears")
    assert MlflowClient().get_experiment(theirs).name == "gears"
    with pytest.raises(MlflowException, match="MLFLOW_NOT_FOUND"):
        MlflowClient().get_experiment(mine)


# --- registering what cannot be a version -----------------------------------------------------------------------------


def test_a_pickled_model_is_kept_as_an_artifact_and_never_registered(surface: Surface, tmp_path: Path) -> None:
    class Adds(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="pickled", python_model=Adds())
    with pytest.raises(MlflowException, match="FLAVOUR_NOT_ONNX"):
        mlflow.register_model(info.model_uri, f"{surface.acme}--pickled")
    assert surface.rows(Listing) == []
    assert surface.market.store.versions(f"{surface.acme}/pickled") == []


def test_what_does_not_pass_inspection_is_said_in_the_vendors_terminal(surface: Surface) -> None:
    with pytest.raises(MlflowException) as refusal:
        log(f"{surface.acme}--linear", metadata={"algomart_visibility": "public"})
    assert "INSPECTION_FAILED" in str(refusal.value)
    assert "CARD_LICENCE_MISSING" in str(refusal.value)
    assert "许可证" in str(refusal.value)
    assert surface.market.store.versions(f"{surface.acme}/linear") == []


def test_a_name_of_somebody_else_or_of_no_vendor_is_refused(surface: Surface) -> None:
    with pytest.raises(MlflowException, match="NOT_YOUR_NAME"):
        log(f"{surface.other}--linear")
    with pytest.raises(MlflowException, match="vendor--name"):
        log("linear")


def test_what_is_registered_stays_as_it_was_inspected(surface: Surface, tmp_path: Path) -> None:
    info = log(f"{surface.acme}--linear")
    (tmp_path / "model.onnx").write_bytes(b"something else")
    experiment = mlflow.get_logged_model(info.model_id).experiment_id
    path = f"/2.0/mlflow-artifacts/artifacts/{experiment}/models/{info.model_id}/artifacts/model.onnx"
    with surface.http(surface.acme) as http:
        assert http.put(path, content=b"something else").json()["error"]["code"] == "PUBLISHED_STAYS"
        assert http.delete(path).json()["error"]["code"] == "PUBLISHED_STAYS"
    client = MlflowClient()
    for attempt in (
        lambda: client.delete_model_version(f"{surface.acme}--linear", "1"),
        lambda: client.delete_registered_model(f"{surface.acme}--linear"),
        lambda: client.rename_registered_model(f"{surface.acme}--linear", f"{surface.acme}--new"),
        lambda: client.delete_model_version_tag(f"{surface.acme}--linear", "1", "algomart.digest"),
    ):
        with pytest.raises(MlflowException, match="PUBLISHED_STAYS"):
            attempt()


# --- whose is it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def things(surface: Surface) -> dict[str, str]:
    """One of each of acme's: the ids by kind."""
    with mlflow.start_run() as run:
        mlflow.log_text("secret", "secret.txt")
        info = log(f"{surface.acme}--linear")
    trace = f"tr-{ULID()}".lower()
    with surface.http(surface.acme) as http:
        made = http.post("/3.0/mlflow/traces", json={"trace": {"trace_info": _trace(trace, run.info.experiment_id)}})
        assert made.status_code == 200, made.text
    return {EXPERIMENT: run.info.experiment_id, RUN: run.info.run_id, MODEL: info.model_id, TRACE: trace}


def _trace(trace_id: str, experiment: str) -> dict[str, Any]:
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    return {"trace_id": trace_id, "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}


WITH_IDS = [endpoint for endpoint in ENDPOINTS if endpoint.ids or "{" in endpoint.path]


def request_with(endpoint: Endpoint, things: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Path and fields of a request that names these things."""
    kinds = {"model_id": MODEL, "trace_id": TRACE}
    path, fields = endpoint.path, {}
    for name in endpoint.pattern.groupindex:
        path = path.replace(f"{{{name}}}", things[kinds[name]] if name in kinds else "x")
    for kind, where in endpoint.ids:
        steps = where.removesuffix("?").split(".")
        if steps[-1] in endpoint.pattern.groupindex:
            continue
        value: Any = [things[kind]] if steps[-1].endswith("ids") and endpoint.method != "GET" else things[kind]
        for step in reversed(steps[1:]):
            value = {step: value}
        fields[steps[0]] = [value] if steps[0] in ("locations", "metrics", "models") else value
    return f"/{path}", fields


@pytest.mark.parametrize("endpoint", WITH_IDS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_nobody_reaches_what_is_another_organisations(surface: Surface, endpoint: Endpoint) -> None:
    things = _shared_things(surface)
    path, fields = request_with(endpoint, things)
    with surface.http(surface.other) as http:
        sent = {"params": fields} if endpoint.method == "GET" else {"json": fields}
        answer = http.request(endpoint.method, path, **sent)
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["code"] == "MLFLOW_NOT_FOUND"


SEVERAL_IDS = [(endpoint, kind) for endpoint in ENDPOINTS if len(endpoint.ids) > 1 for kind, _ in endpoint.ids]


@pytest.mark.parametrize(
    ("endpoint", "foreign"), SEVERAL_IDS, ids=lambda value: value if isinstance(value, str) else value.path
)
def test_each_id_of_a_request_is_judged_by_itself(
    surface: Surface, things: dict[str, str], endpoint: Endpoint, foreign: str
) -> None:
    """All ids but one are the caller's own. A stranger's metric reached a logged model that way."""
    _, fields = request_with(endpoint, things | {foreign: _shared_things(surface)[foreign]})
    with surface.http(surface.acme) as http:
        answer = http.request(endpoint.method, f"/{endpoint.path}", json=fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "MLFLOW_NOT_FOUND")


def test_what_is_passed_on_as_it_is_names_every_id_that_mlflow_would_read() -> None:
    """By MLflow's own description of its requests."""
    plain = [each for each in ENDPOINTS if not each.rule]
    named = {(each.method, each.path): {where.removesuffix("?") for _, where in each.ids} for each in plain}
    for method in MlflowService.DESCRIPTOR.methods:
        for place in method.GetOptions().Extensions[rpc].endpoints:
            known = named.get((place.method, f"{place.since.major}.0{place.path}"))
            if known is not None:
                read = {"run_id", "model_id", "experiment_id"} & set(method.input_type.fields_by_name)
                assert read <= known, f"{place.method} {place.path}"


_THINGS: dict[str, str] = {}


def _shared_things(surface: Surface) -> dict[str, str]:
    """Things of a third organisation, made once: an experiment, a run and a logged model straight in MLflow."""
    if not _THINGS:
        child = running_child()
        with httpx.Client(base_url=f"{child.base_url}/api", headers=child.headers) as http:
            name = {"name": f"org_third{ULID()}/Default"}
            experiment = http.post("/2.0/mlflow/experiments/create", json=name).json()["experiment_id"]
            run = http.post("/2.0/mlflow/runs/create", json={"experiment_id": experiment}).json()["run"]["info"]
            model = http.post("/2.0/mlflow/logged-models", json={"experiment_id": experiment, "name": "m"}).json()
            trace = f"tr-{ULID()}".lower()
            http.post("/3.0/mlflow/traces", json={"trace": {"trace_info": _trace(trace, experiment)}})
            _THINGS.update(
                {EXPERIMENT: experiment, RUN: run["run_id"], MODEL: model["model"]["info"]["model_id"], TRACE: trace}
            )
    return _THINGS


def test_a_file_is_read_and_written_by_its_organisation_only(surface: Surface, things: dict[str, str]) -> None:
    secret = f"/2.0/mlflow-artifacts/artifacts/{things[EXPERIMENT]}/{things[RUN]}/artifacts/secret.txt"
    with surface.http(surface.acme) as mine, surface.http(surface.other) as theirs:
        assert mine.get(secret).text == "secret"
        for attempt in (theirs.get(secret), theirs.put(secret, content=b"x"), theirs.delete(secret)):
            assert (attempt.status_code, attempt.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
        listed = theirs.get("/2.0/mlflow-artifacts/artifacts", params={"path": things[EXPERIMENT]})
        assert listed.status_code == 404
        for path in ("..", f"{things[EXPERIMENT]}/../x", f"{things[EXPERIMENT]}/%2e%2e/x", "", "x/y"):
            assert mine.get("/2.0/mlflow-artifacts/artifacts", params={"path": path}).status_code == 400
        assert mine.get(secret).text == "secret"


def test_other_spellings_of_an_id_are_refused(surface: Surface, things: dict[str, str]) -> None:
    """MLflow would read runId, and run_uuid before nothing at all."""
    with surface.http(surface.other) as http:
        run = things[RUN]
        for body in ({"runId": run}, {"run_uuid": run}, {"run_id": "", "runUuid": run}, {"run_id": {"a": run}}, {}):
            answer = http.post("/2.0/mlflow/runs/set-tag", json={"key": "k", "value": "v", **body})
            assert answer.status_code in (400, 404), answer.text
        answer = http.get("/2.0/mlflow/runs/get", params={"run_uuid": run})
        assert answer.status_code in (400, 404)
    assert "k" not in mlflow.get_run(things[RUN]).data.tags


def test_a_search_finds_ones_own_only(surface: Surface, things: dict[str, str], as_other) -> None:
    client = as_other()
    assert client.search_experiments() == []
    assert client.search_experiments(filter_string="name LIKE '%'") == []
    assert client.search_registered_models() == []
    assert client.search_model_versions() == []
    with pytest.raises(MlflowException, match="MLFLOW_NOT_FOUND"):
        client.get_registered_model(f"{surface.acme}--linear")


def test_a_listed_model_is_seen_by_all_and_downloaded_under_an_open_licence_only(
    surface: Surface, tmp_path: Path, as_other
) -> None:
    for name, licence in (("open", "Apache-2.0"), ("closed", "proprietary")):
        bundle = linear_bundle(tmp_path / name, f"{surface.acme}/{name}", licence=licence)
        publish(surface.market, bundle.path, organisation_id=f"org_{surface.acme}", published_by="m", private=False)
    client = as_other()
    assert client.search_registered_models() == []
    surface.shelve(f"{surface.acme}/open")
    surface.shelve(f"{surface.acme}/closed")
    found = {model.name for model in client.search_registered_models()}
    assert found == {f"{surface.acme}--open", f"{surface.acme}--closed"}
    assert mlflow.onnx.load_model(f"models:/{surface.acme}--open/1").graph.name == "linear"
    with pytest.raises(HTTPError, match="WEIGHTS_NOT_SHARED"):
        mlflow.onnx.load_model(f"models:/{surface.acme}--closed/1")
    with pytest.raises(MlflowException, match="NOT_YOUR_NAME"):
        client.set_registered_model_alias(f"{surface.acme}--open", "mine", "1")


@pytest.mark.parametrize(
    ("licence", "relation", "given"),
    [
        ("proprietary", "calibrated", False),
        ("proprietary", "retrained", True),
        ("Apache-2.0", "calibrated", True),
    ],
)
def test_a_derivative_does_not_carry_closed_weights_out_of_the_market(
    surface: Surface, tmp_path: Path, as_other, licence: str, relation: str, given: bool
) -> None:
    """A calibrated derivative is the parent's graph with a scale behind it."""
    bundle = linear_bundle(tmp_path / "parent", f"{surface.acme}/parent", licence=licence)
    publish(surface.market, bundle.path, organisation_id=f"org_{surface.acme}", published_by="m", private=False)
    surface.shelve(f"{surface.acme}/parent")
    own = linear_bundle(tmp_path / "own", f"{surface.other}/own")
    publish(surface.market, own.path, organisation_id=f"org_{surface.other}", published_by="m", private=True)
    with transaction(surface.market.engine) as session:
        rows = {listing.name: version for version, listing in session.exec(select(ModelVersion, Listing).join(Listing))}
        child, parent = rows[f"{surface.other}/own"], rows[f"{surface.acme}/parent"]
        child.parent_version_id, child.relation = parent.id, relation
        session.add(child)
    as_other()
    if given:
        assert mlflow.onnx.load_model(f"models:/{surface.other}--own/1").graph.name == "linear"
    else:
        with pytest.raises(HTTPError, match="WEIGHTS_NOT_SHARED"):
            mlflow.onnx.load_model(f"models:/{surface.other}--own/1")


def test_a_listed_model_that_was_logged_by_a_client_is_downloaded_by_others(surface: Surface, as_other) -> None:
    log(f"{surface.acme}--linear")
    surface.shelve(f"{surface.acme}/linear")
    as_other()
    with pytest.raises(HTTPError, match="WEIGHTS_NOT_SHARED"):  # it names no licence
        mlflow.onnx.load_model(f"models:/{surface.acme}--linear/1")
    with transaction(surface.market.engine) as session:
        version = session.exec(select(ModelVersion)).one()
        version.manifest = {**version.manifest, "licence": "MIT"}
        session.add(version)
    assert mlflow.onnx.load_model(f"models:/{surface.acme}--linear/1").graph.name == "linear"


# --- refused outright -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/2.0/mlflow/gateway/proxy"),
        ("GET", "/2.0/mlflow/users/get"),
        ("POST", "/3.0/mlflow/webhooks"),
        ("POST", "/2.0/mlflow/artifacts/presigned-upload-url"),
        ("POST", "/2.0/mlflow-artifacts/mpu/create/1/a"),
        ("GET", "/2.0/mlflow-artifacts/presigned/1/a"),
        ("POST", "/3.0/mlflow/datasets/create"),
        ("GET", "/2.0/mlflow/runs/create"),
    ],
)
def test_what_is_not_offered_is_refused_explicitly(surface: Surface, method: str, path: str) -> None:
    with surface.http(surface.acme) as http:
        answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error_code"]) == (501, "NOT_IMPLEMENTED")
    assert "/ 本市场" in answer.json()["message"]


def test_without_a_key_or_with_one_that_may_not_publish_nothing_is_written(surface: Surface) -> None:
    with transaction(surface.market.engine) as session:
        from marketplace.organisations.tables import Organisation

        owner = session.get_one(Organisation, f"org_{surface.acme}")
        _, reader = create_key(session, owner, name="r", scopes=["use"], actor="t")
    surface.keys |= {"nobody": "", "stranger": "am_unknown", "reader": reader}
    create = "/2.0/mlflow/experiments/create"
    for who, status, code in (
        ("nobody", 401, "UNAUTHENTICATED"),
        ("stranger", 401, "UNAUTHENTICATED"),
        ("reader", 403, "PERMISSION_DENIED"),
    ):
        with httpx.Client(base_url=f"{surface.url}/api", headers={"X-API-Key": surface.keys[who]}) as http:
            answer = http.post(create, json={"name": "x"})
            assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    with surface.http("reader") as http:
        assert http.post("/2.0/mlflow/experiments/search", json={"max_results": 5}).status_code == 200


def test_where_artifacts_go_is_not_the_clients_to_say(surface: Surface) -> None:
    with pytest.raises(MlflowException, match="MLFLOW_NOT_OFFERED"):
        MlflowClient().create_experiment("etc", artifact_location="file:///etc")
    with surface.http(surface.acme) as http:
        for source in ("file:///etc/passwd", "http://example.com/x", "models:/other/1", "mlflow-artifacts:/0/../x"):
            body = {"name": f"{surface.acme}--x", "source": source}
            assert http.post("/2.0/mlflow/model-versions/create", json=body).status_code in (400, 404)


def test_bodies_have_limits_both_ways(surface: Surface) -> None:
    with mlflow.start_run() as run:
        pass
    with surface.http(surface.acme) as http:
        path = f"/2.0/mlflow-artifacts/artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts/big.bin"
        assert http.put(path, content=b"x" * 2000).status_code == 200
        surface.market.settings.max_upload_bytes = 1000
        pieces = (b"x" * 400 for _ in range(5))  # its length is not declared
        for answer in (http.put(path, content=b"x" * 2000), http.put(path, content=pieces), http.get(path)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "MLFLOW_BODY_TOO_LARGE")
        huge = http.post("/2.0/mlflow/runs/set-tag", content=b" " * ((16 << 20) + 1))
        assert (huge.status_code, huge.json()["error"]["code"]) == (413, "MLFLOW_BODY_TOO_LARGE")


def test_a_registry_that_is_away_is_said_to_be_away(market: Market) -> None:
    from starlette.testclient import TestClient

    with transaction(market.engine) as session:
        _, key = create_key(session, add_organisation(session, "acme"), name="k", scopes=["publish"], actor="t")
    client = TestClient(MlflowProxy(market, "http://127.0.0.1:9", {}))
    answer = client.get(
        "/mlflow/api/2.0/mlflow/experiments/get?experiment_id=1", headers={"Authorization": f"Bearer {key}"}
    )
    assert (answer.status_code, answer.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert answer.headers["Retry-After"]
