"""OpenAI's surface through the real `openai` client; the numbers are ONNX Runtime's in this process."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from model_store.bundle import seal
from model_store.errors import BadInput
from model_store.graph_specs import read_graph_specs
from model_store.manifest import Manifest
from serving.metering import PriceLine
from serving.protocols.openai import _read
from tests.serving.parts import KEY, READ_KEY, model
from tests.serving.test_http import Served, serve

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pump", "leaks", "bearing", "noise", "轴承", "hot"]
WIDTH, MAX_TOKENS, MAX_ROWS = 6, 8, 4
NAME = "acme/words"
PRICE = 1000  # micro-fen a token
TEXTS = ["pump leaks", "bearing noise hot hot", "轴承", "pump " * 30, "unheard", "hot"]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return made


def mean_of_words() -> onnx.ModelProto:
    """Each token's vector from a table; their mean over the mask."""
    info, node = helper.make_tensor_value_info, helper.make_node
    return model(
        [
            node("Gather", ["table", "input_ids"], ["each"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["weights"]),
            node("Mul", ["each", "weights"], ["kept"]),
            node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
            node("ReduceSum", ["weights", "one"], ["count"], keepdims=0),
            node("Div", ["total", "count"], ["embedding"]),
        ],
        [info(name, TensorProto.INT64, ["n", "l"]) for name in ("input_ids", "attention_mask")],
        [info("embedding", TensorProto.FLOAT, ["n", WIDTH])],
        {
            "table": np.random.default_rng(3).normal(size=(len(WORDS), WIDTH)).astype(np.float32),
            "last": np.array([2]),
            "one": np.array([1]),
        },
    )


def text_bundle(folder: Path, name: str, **more: Any) -> Path:
    folder.mkdir(parents=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    onnx.save(mean_of_words(), str(folder / "model.onnx"))
    inputs, outputs = read_graph_specs(folder / "model.onnx")
    names = ["input_ids", "attention_mask"]
    told: dict[str, Any] = {
        "name": name, "task": "embedding", "modality": "text", "inputs": inputs, "outputs": outputs,
        "features": [{"name": "text", "kind": "text"}],
        "pre": [{"op": "tokenise", "feature": "text", "max_length": MAX_TOKENS, "tensors": names}],
        "post": [{"op": "vector", "tensor": "embedding"}], "batching": {"max_rows": MAX_ROWS},
    }  # fmt: skip
    return seal(folder, Manifest.model_validate(told | more)).path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("node")
    for node in serve(folder):
        node.node.admission.prices[NAME] = PriceLine("prc_words", NAME, "tokens_in", PRICE, 1, 2)
        node.node.bundles.add(text_bundle(folder / "words", NAME), aliases=["stable"])
        own = text_bundle(folder / "own", "other/own")
        node.node.bundles.add(own, owner="org_other", private=True)
        yield node


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with client_of(served) as made:
        yield made


def client_of(served: Served, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{served.url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(trust_env=False)
    )


@pytest.fixture(scope="module")
def wanted(served: Served) -> np.ndarray:
    """Unit vectors and tokens of TEXTS, one text at a time, in this process."""
    session = onnxruntime.InferenceSession(
        served.node.bundles.resolve(NAME, None, None).bundle / "model.onnx",  # type: ignore[arg-type]
        providers=["CPUExecutionProvider"],
    )
    vectors = []
    for text in TEXTS:
        ids = np.array([ids_of(text)])
        (vector,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        vectors.append(vector / np.linalg.norm(vector))
    return np.array(vectors)


def ids_of(text: str) -> list[int]:
    made = tokenizer()
    made.enable_truncation(MAX_TOKENS)
    ids: list[int] = made.encode(text).ids
    return ids


TOKENS = [len(ids_of(text)) for text in TEXTS]


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_a_batch_of_texts_gets_onnx_runtime_s_vectors_in_its_order(client, wanted, encoding) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}  # by itself the client asks for base64
    answer = client.embeddings.create(model=NAME, input=TEXTS, **more)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    vectors = [item.embedding for item in answer.data]
    if encoding == "base64":  # whoever asks for it gets it as it is
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4").tolist() for vector in vectors]
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-6)
    assert answer.model == NAME
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (sum(TOKENS), sum(TOKENS))


@pytest.mark.parametrize("name", [NAME, "acme--words", f"{NAME}@stable", f"{NAME}@1"])
def test_one_text_is_one_vector_by_any_spelling_of_the_model(client, wanted, name) -> None:
    answer = client.embeddings.create(model=name, input=TEXTS[0], user="press 7")
    (item,) = answer.data
    np.testing.assert_allclose(item.embedding, wanted[0], rtol=1e-5, atol=1e-6)


async def test_the_aio_client_gets_them_too(served, wanted) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = await client.embeddings.create(model=NAME, input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in answer.data], wanted, rtol=1e-5, atol=1e-6)


def test_tokens_are_metered_and_charged(served, client) -> None:
    raw = client.embeddings.with_raw_response.create(model=NAME, input=TEXTS)
    ids = raw.headers["x-usage-id"].split(",")
    records = [record for record in served.node.usage() if record.usage_id in ids]
    assert len(records) == len(ids) == -(-len(TEXTS) // MAX_ROWS)
    assert sum(record.units["tokens_in"] for record in records) == sum(TOKENS)
    assert sum(record.units["rows"] for record in records) == len(TEXTS)
    assert sum(record.amount_micro for record in records) == PRICE * sum(TOKENS)
    assert raw.headers["x-amount-micro"] == str(PRICE * sum(TOKENS))


def test_a_repeat_under_an_idempotency_key_is_charged_once(client) -> None:
    header = {"Idempotency-Key": "embed-once"}
    create = client.embeddings.with_raw_response.create
    first, second = (create(model=NAME, input="pump", extra_headers=header) for _ in range(2))
    assert first.headers["x-usage-id"] == second.headers["x-usage-id"]
    with pytest.raises(openai.ConflictError):
        create(model=NAME, input="noise", extra_headers=header)
    with pytest.raises(openai.BadRequestError, match="one run only"):
        create(model=NAME, input=TEXTS, extra_headers=header)


def test_the_model_s_own_number_of_dimensions_may_be_asked_for(client) -> None:
    answer = client.embeddings.create(model=NAME, input="pump", dimensions=WIDTH)
    assert len(answer.data[0].embedding) == WIDTH


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        ({"input": "pump", "dimensions": 3}, "dimensions", "REQUEST_FIELD"),
        ({"input": []}, "input", "REQUEST_FIELD"),
        ({"input": ""}, "input", "REQUEST_FIELD"),
        ({"input": ["pump", ""]}, "input", "REQUEST_FIELD"),
        ({"input": [4, 5]}, "input", "REQUEST_FIELD"),
        ({"input": [[4, 5]]}, "input", "REQUEST_FIELD"),
        ({"input": ["a"] * 2049}, "input", "REQUEST_FIELD"),
        ({"input": "pump", "encoding_format": "hex"}, "encoding_format", "REQUEST_FIELD"),
        ({"input": "pump", "extra_body": {"tempo": 1}}, "body", "REQUEST_FIELD"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_openai_s_shape_and_costs_nothing(
    served, client, request_, param, code
) -> None:
    before = len(served.node.usage())
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=NAME, **request_)
    error = refused.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert {"message", "type", "param", "code"} <= set(error.body)  # type: ignore[arg-type]
    assert any("一" <= letter <= "鿿" for letter in error.message)
    assert len(served.node.usage()) == before


def test_a_model_that_embeds_no_text_says_what_to_use_instead(client) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="MODEL_NOT_EMBEDDING"):
        client.embeddings.create(model="acme/double", input="pump")


def test_who_may_not_is_told_as_the_client_expects(served, client) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="other/own", input="pump")  # private, another's
    assert unknown.value.code == "MODEL_NOT_FOUND"
    with client_of(served, READ_KEY) as reader, pytest.raises(openai.PermissionDeniedError):
        reader.embeddings.create(model=NAME, input="pump")
    with client_of(served, "wrong") as stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.models.list()
    assert refused.value.type == "authentication_error"
    with served.client() as http:
        assert http.get("/v1/embeddings").status_code == 405
        answer = http.post("/v1/embeddings", content=b"{")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "REQUEST_JSON")


def test_texts_of_too_many_characters_in_all_are_refused() -> None:
    document = {"model": NAME, "input": ["a" * 50_000] * 41}
    with pytest.raises(BadInput, match="2000000 characters"):
        _read(json.dumps(document).encode())


TEXT = st.text(max_size=5)


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=20),
        st.dictionaries(
            st.sampled_from(["model", "input", "encoding_format", "dimensions", "user", "x"]),
            st.one_of(
                TEXT, st.integers(), st.none(), st.lists(st.one_of(TEXT, st.integers(), st.lists(st.integers())))
            ),
        ).map(lambda document: httpx.Request("POST", "http://x", json=document).content),
    )
)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        asked, texts = _read(body)
    except BadInput:
        return
    assert texts
    assert all(texts)
    assert asked.encoding_format in ("float", "base64")


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_those_the_caller_may_see(client) -> None:
    models_ = {each.id: each for each in client.models.list()}
    assert {NAME, "acme/double"} <= set(models_)
    assert "other/own" not in models_
    assert models_[NAME].owned_by == "acme"
    assert models_[NAME].created > 1_600_000_000


def test_one_model_is_found_by_its_name(client) -> None:
    assert client.models.retrieve(NAME).id == NAME
    assert client.models.retrieve("acme--words").id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme/nothing")


@pytest.mark.parametrize("extra", [{}, {"Idempotency-Key": "words"}], ids=["at once", "queued"])
def test_tokens_cost_the_same_by_whichever_way_they_come(served, extra) -> None:
    """Counted by the engine: a caller of named features or of tensors cannot leave them out."""
    ids = ids_of(TEXTS[1])
    padded = [*ids, 0, 0]  # padding costs nothing
    tensors = [
        {"name": "input_ids", "datatype": "INT64", "shape": [1, len(padded)], "data": padded},
        {"name": "attention_mask", "datatype": "INT64", "shape": [1, len(padded)], "data": [1] * len(ids) + [0, 0]},
    ]
    charged = []
    with served.client() as http:
        for place in range(2):
            more = {name: f"{value}-{place}" for name, value in extra.items()}
            answer = http.post("/v2/models/acme--words/infer", json={"inputs": tensors}, headers=more)
            charged.append(int(answer.headers["x-amount-micro"]))
            more = {name: f"{value}-use-{place}" for name, value in extra.items()}
            answer = http.post("/v1/use/acme/words", json={"inputs": {"text": TEXTS[1]}}, headers=more)
            charged.append(answer.json()["charge"]["amount_micro"])
    assert charged == [PRICE * len(ids)] * 4
