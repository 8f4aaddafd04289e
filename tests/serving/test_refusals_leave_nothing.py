"""A refused call leaves nothing to the garbage collector, which holds up everybody while it looks through thousands."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from model_store.errors import Refusal
from serving.calls import Call
from serving.runs import Job
from tests.serving.parts import rows, until
from tests.serving.test_grpc import bearer, tensor
from tests.serving.test_grpc import serving as grpc_node
from tests.serving.test_http import PATH, Served, request_of, serve

TIMES = 20
ENDLESS = "/v2/models/acme--endless/infer"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("node"))


def wrong_input(client: httpx.Client, number: int) -> int:
    return client.post(PATH, json=request_of(rows(1, columns=7))).status_code


def wrong_input_under_a_key(client: httpx.Client, number: int) -> int:
    headers = {"Idempotency-Key": f"wrong-{number}"}
    return client.post(PATH, json=request_of(rows(1, columns=7)), headers=headers).status_code


def no_such_model(client: httpx.Client, number: int) -> int:
    return client.post("/v2/models/acme--none/infer", json=request_of(rows(1))).status_code


def past_its_deadline(client: httpx.Client, number: int) -> int:
    return client.post(ENDLESS, json=request_of(rows(1)), headers={"X-Deadline-Ms": "20"}).status_code


def wrong_rows(client: httpx.Client, number: int) -> int:
    return client.post("/v1/use/acme/double", json={"rows": "none"}).status_code


@pytest.mark.parametrize("ask", [wrong_input, wrong_input_under_a_key, no_such_model, past_its_deadline, wrong_rows])
def test_a_refused_call_is_gone_without_the_garbage_collector(
    served: Served, ask: Callable[[httpx.Client, int], int]
) -> None:
    served.warm()
    with served.client() as client:
        ask(client, -1)
        before = alive()
        gc.disable()
        try:
            for number in range(TIMES):
                assert ask(client, number) >= 400
            assert settled(before) == {}
        finally:
            gc.enable()


def alive() -> Counter[str]:
    gc.collect()
    return count()


def count() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, (Refusal, Call, Job)))


def settled(before: Counter[str]) -> Counter[str]:
    """What is alive that was not before, once the node is done with the last call."""
    for _ in range(100):
        if not (left := count() - before):
            break
        time.sleep(0.02)
    return left


async def test_nor_does_one_over_grpc(tmp_path: Path) -> None:
    async with grpc_node(tmp_path) as served, served.client() as client:

        async def refused(number: int) -> None:
            wrong = [tensor(rows(1, columns=7))]
            with pytest.raises(InferenceServerException):
                await client.infer("acme--double", wrong, headers=bearer(idempotency_key=f"wrong-{number}"))

        await refused(-1)
        before = alive()
        gc.disable()
        try:
            for number in range(TIMES):
                await refused(number)
            await until(lambda: not count() - before)
        finally:
            gc.enable()
