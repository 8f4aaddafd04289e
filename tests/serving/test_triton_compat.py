"""What Triton's public client examples do and check, done with the real `tritonclient` against a node in compat mode.

The models are those of Triton's example repository (`tests/triton_examples/models.py`). The examples send no key: the
node is asked for none, on loopback. The examples themselves are run by `make triton-examples`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from marketplace.settings import Settings
from model_store.errors import BadInput, Forbidden
from serving.keyless import check_loopback, check_own_machine
from serving.memory_admission import FolderBundles
from serving.protocols.triton_compat import BareNames
from serving.settings import ServingSettings
from tests.ports import free_port
from tests.serving.parts import FACTORY, OTHER, bundle, double
from tests.triton_examples.models import MODELS
from tests.triton_examples.node import Node, serve

ONES, COUNT = np.ones((1, 16), np.int32), np.arange(16, dtype=np.int32).reshape(1, 16)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """HTTP and gRPC of a lone node over the example models, as the command line starts it."""
    node = Node(tmp_path_factory.mktemp("triton"))
    node.start()
    yield node.port, node.grpc_port
    node.stop()
    assert "NO KEY IS ASKED" in node.log


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, ports: tuple[int, int]) -> Iterator[Any]:
    if request.param == "http":
        made: Any = triton.InferenceServerClient(f"localhost:{ports[0]}")
    else:
        made = triton_grpc.InferenceServerClient(f"localhost:{ports[1]}")
    made.library = triton if request.param == "http" else triton_grpc
    with made:
        yield made


def infer(client: Any, name: str, *arrays: np.ndarray, datatype: str | None = None, **more: Any) -> Any:
    inputs = []
    for place, array in enumerate(arrays):
        tensor = client.library.InferInput(
            f"INPUT{place}", list(array.shape), datatype or np_to_triton_dtype(array.dtype)
        )
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(name, inputs, **more)


def states(client: Any) -> dict[str, str]:
    """Name → state of the repository's index."""
    index = client.get_model_repository_index(**({} if client.library is triton else {"as_json": True}))
    index = index if isinstance(index, list) else index["models"]
    return {each["name"]: each["state"] for each in index}


# --- health and metadata ----------------------------------------------------------------------------------------------


def test_the_server_says_it_is_triton_and_knows_its_models_by_their_bare_names(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("wrong_model_name")
    as_json = {} if client.library is triton else {"as_json": True}
    assert client.get_server_metadata(**as_json)["name"] == "triton"
    metadata = client.get_model_metadata("simple", **as_json)
    assert metadata["name"] == "simple"
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 16]
    config = client.get_model_config("simple_string", **as_json)
    config = config.get("config", config)
    assert (config["name"], config["max_batch_size"]) == ("simple_string", 8)
    assert (config["input"][0]["data_type"], [int(size) for size in config["input"][0]["dims"]]) == (
        "TYPE_STRING",
        [16],
    )
    assert states(client) == dict.fromkeys(MODELS, "READY")


def test_an_unknown_model_is_refused_in_triton_s_words_with_ours_behind(client) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata("wrong_model_name")
    assert refused.value.message().startswith("Request for unknown model: 'wrong_model_name' is not found")
    assert "没有名为" in refused.value.message()
    with pytest.raises(InferenceServerException) as refused:
        infer(client, "wrong_model_name", COUNT, ONES)
    assert refused.value.message().startswith("Request for unknown model")
    with pytest.raises(InferenceServerException, match=r"^.*Request for unknown model: '\S+' version 99 is not found"):
        client.get_model_metadata("simple", model_version="99")


def test_a_version_that_is_no_number_and_no_alias_is_refused_in_triton_s_words(client) -> None:
    with pytest.raises(InferenceServerException) as refused:
        infer(client, "simple", COUNT, ONES, model_version="wrong_specification")
    told = refused.value.message()
    assert told.startswith("failed to get model version from specified version string 'wrong_specification'")


def test_typed_contents_beside_raw_ones_are_refused_in_triton_s_words(ports) -> None:
    tensors = [triton_grpc.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
    for tensor in tensors:
        tensor.set_data_from_numpy(COUNT)
    request = triton_grpc.service_pb2.ModelInferRequest(model_name="simple")
    request.inputs.extend(tensor._get_tensor() for tensor in tensors)
    request.raw_input_contents.append(tensors[0]._get_content())  # as Triton's example does: for one of the two
    request.inputs[0].contents.int_contents.extend(range(8))
    with grpc.insecure_channel(f"localhost:{ports[1]}") as channel, pytest.raises(grpc.RpcError) as refused:
        triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    told = "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'simple'"
    assert refused.value.details().startswith(told)


def test_a_wrong_shape_is_refused_in_triton_s_words(client) -> None:
    with pytest.raises(InferenceServerException) as refused:
        infer(client, "simple", COUNT.reshape(2, 8), ONES.reshape(2, 8))
    message = refused.value.message()
    assert message.startswith("unexpected shape for input 'INPUT")
    assert "Expected [-1,16], got [2,8]" in message
    if client.library is triton:
        assert " for model 'simple'. " in message


def test_models_are_loaded_and_unloaded_by_their_bare_names(client) -> None:
    client.load_model("simple")
    assert client.is_model_ready("simple")
    client.unload_model("simple")
    assert not client.is_model_ready("simple")
    assert states(client)["simple"] == "UNAVAILABLE"
    infer(client, "simple", COUNT, ONES)  # here a model that is not loaded is loaded by its first call
    assert client.is_model_ready("simple")
    assert states(client)["simple"] == "READY"
    client.unload_model("simple")
    client.load_model("simple")
    assert client.is_model_ready("simple")


def test_what_cannot_be_loaded_failed_to_load(client) -> None:
    with pytest.raises(InferenceServerException, match="failed to load 'wrong_model_name'"):
        client.load_model("wrong_model_name")
    with pytest.raises(InferenceServerException, match=r"failed to load 'simple'.*EXTENSION_NOT_OFFERED"):
        client.load_model("simple", config='{"max_batch_size": "16"}')


def test_the_configuration_says_how_a_picture_lies_in_its_tensor(client) -> None:
    as_json = {} if client.library is triton else {"as_json": True}

    def told(name: str) -> str | None:
        config = client.get_model_config(name, **as_json)
        found: str | None = config.get("config", config)["input"][0].get("format")
        return found

    assert told("inception_onnx") == "FORMAT_NCHW"
    assert told("simple") is None


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("simple", np.int32), ("simple_int8", np.int8)])
def test_sums_and_differences_come_back_with_outputs_named_and_not(client, name, dtype) -> None:
    first, second = COUNT.astype(dtype), ONES.astype(dtype)
    named = [client.library.InferRequestedOutput(f"OUTPUT{i}") for i in (0, 1)]
    for outputs in (named, None):
        answer = infer(client, name, first, second, outputs=outputs, request_id="7")
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), first + second)
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), first - second)
        assert answer.as_numpy("OUTPUT0").dtype == dtype
        told = answer.get_response()
        assert (told["model_name"] if client.library is triton else told.model_name) == name
    as_json = {} if client.library is triton else {"as_json": True}
    (statistics,) = client.get_inference_statistics(name, **as_json)["model_stats"]
    assert statistics["name"] == name
    assert int(statistics["inference_stats"]["success"]["count"]) >= 2


def test_texts_of_numbers_are_added_and_any_bytes_pass_through(client) -> None:
    texts = [np.array([str(n).encode() for n in array.flat], np.object_).reshape(1, 16) for array in (COUNT, ONES)]
    answer = infer(client, "simple_string", *texts)
    assert [int(text) for text in answer.as_numpy("OUTPUT0").flat] == list(range(1, 17))
    assert [int(text) for text in answer.as_numpy("OUTPUT1").flat] == list(range(-1, 15))
    for content in (b"he\x00llo", b"\x00\x01\x02\x03", "轴承".encode()):
        given = np.array([content] * 16, np.object_).reshape(1, 16)
        np.testing.assert_array_equal(infer(client, "simple_identity", given).as_numpy("OUTPUT0"), given)


def test_calls_under_way_together_are_answered_each_its_own(ports) -> None:
    with triton.InferenceServerClient(f"localhost:{ports[0]}", concurrency=4) as client:
        requests = []
        for place in range(8):
            inputs = [triton.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
            inputs[0].set_data_from_numpy(COUNT + place)
            inputs[1].set_data_from_numpy(ONES)
            requests.append(client.async_infer("simple", inputs))
        for place, request in enumerate(requests):
            np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT0"), COUNT + place + 1)


def test_sequences_are_refused_not_answered_without_their_state(client) -> None:
    with pytest.raises(InferenceServerException, match="EXTENSION_NOT_OFFERED"):
        infer(client, "simple", COUNT, ONES, sequence_id=1000, sequence_start=True)


def test_generate_and_the_statistics_of_all_models_use_the_bare_name_too(ports) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", trust_env=False) as http:
        document = {"INPUT0": list(range(16)), "INPUT1": [1] * 16}
        answer = http.post("/v2/models/simple/generate", json=document).json()
        assert (answer["model_name"], answer["OUTPUT0"]) == ("simple", list(range(1, 17)))
        told = {entry["name"] for entry in http.get("/v2/models/stats").json()["model_stats"]}
    assert "simple" in told
    assert told <= set(MODELS)


def test_the_market_s_own_setting_reaches_its_data_plane() -> None:
    assert ServingSettings.of(Settings(triton_compat=True)).triton_compat
    assert not ServingSettings.of(Settings()).triton_compat


# --- names without a vendor -------------------------------------------------------------------------------------------


def test_a_bare_name_stands_for_one_visible_model_or_for_none(tmp_path: Path) -> None:
    now = 0.0
    bundles = FolderBundles()
    for place, name in enumerate(("acme/double", "acme/other", "third/other")):
        bundles.add(bundle(tmp_path / str(place), name, double()).path)
    bundles.add(bundle(tmp_path / "own", "other/double", double()).path, owner=OTHER.organisation, private=True)
    names = BareNames(bundles, lambda: now)
    assert names.full(FACTORY, "double") == "acme/double"
    assert names.full(OTHER, "double") == "double"  # they see two of that name
    assert names.full(FACTORY, "other") == "other"
    assert names.full(FACTORY, "acme--double") == "acme--double"
    assert (names.shown(FACTORY, "acme/double"), names.shown(OTHER, "acme/double")) == ("double", "acme--double")
    bundles.add(bundle(tmp_path / "new", "acme/new", double()).path)
    now = 2.0
    assert names.full(FACTORY, "new") == "acme/new"


# --- without a key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.org"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Referer": "http://localhost/"},
        {"X-Forwarded-For": "10.0.0.7"},
        {"Forwarded": "for=10.0.0.7"},
        {"Via": "1.1 proxy"},
        {"Host": "rebound.example.org"},
        {"Host": "127.0.0.1.example.org:8001"},
    ],
)
def test_pages_and_proxies_are_refused_where_programs_need_no_key(ports, headers) -> None:
    url = f"http://127.0.0.1:{ports[0]}/v2/models/simple"
    assert httpx.get(url, trust_env=False).status_code == 200
    refused = httpx.get(url, headers=headers, trust_env=False)
    assert (refused.status_code, refused.json()["code"]) == (403, "NO_KEY_FROM_ELSEWHERE")


def test_a_wrong_key_is_no_missing_key(ports) -> None:
    url = f"http://127.0.0.1:{ports[0]}/v2/models/simple"
    assert httpx.get(url, headers={"Authorization": "Bearer wrong"}, trust_env=False).status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8001"])
def test_this_machine_s_own_names_are_known(host) -> None:
    check_own_machine({b"host": host.encode()})


@pytest.mark.parametrize("host", ["", "example.org", "10.0.0.1:80", "[::2]:1", "localhost.example.org", "\xff"])
def test_other_names_are_not(host) -> None:
    with pytest.raises(Forbidden):
        check_own_machine({b"host": host.encode("latin-1")})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_without_a_key_a_node_listens_on_loopback_only(host) -> None:
    with pytest.raises(BadInput, match="NO_KEY_NEEDS_LOOPBACK"):
        check_loopback(host)


def test_the_command_line_refuses_to_open_a_keyless_node_to_others(tmp_path: Path) -> None:
    process = serve(tmp_path, tmp_path / "home", "--no-key", "--host", "0.0.0.0", "--port", str(free_port()))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "NO_KEY_NEEDS_LOOPBACK" in said
