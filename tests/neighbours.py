"""Other organisations at a live market, whose calls must go on whatever somebody else does to it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime

from marketplace.organisations.uscc import demo_code
from model_store.bundle import Bundle, unpack
from tests.live import LiveMarket

STARTERS = Path(__file__).parents[1] / "marketplace" / "catalogue" / "starter"


def starter(name: str, folder: Path) -> Bundle:
    """The shipped bundle of a starter model, unpacked into `folder`: what the market serves under that name."""
    return unpack(STARTERS / f"{name.replace('/', '--')}.zip", folder)


def ask(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


def neighbour(market: LiveMarket, number: int, subscribed_to: str) -> httpx.Client:
    """A further factory, registered, approved and with a key of its own, that takes a model at its own cost."""
    visitor = market.client()
    body = {"kind": "enterprise", "name_zh": f"邻厂{number}", "slug": f"neighbour-{number}", "uscc": demo_code(number),
            "email": f"n{number}@example.com", "member_name": "何", "password": "a long sentence of ours"}  # fmt: skip
    made = ask(visitor.post("/api/v1/organisations", json=body))["organisation"]
    ask(market.client("operator").post(f"/api/v1/organisations/{made['id']}/approve"))
    ask(visitor.post("/api/v1/login", json={"email": body["email"], "password": body["password"]}))
    key = ask(visitor.post("/api/v1/keys", json={"name": "line 1", "scopes": ["use", "publish"]}))["key"]
    terms = {"listing": subscribed_to, "contract_fen": 0, "on_voucher_end": "self_pay", "monthly_cap_fen": 100_000}
    ask(visitor.post("/api/v1/subscriptions", json=terms))
    visitor.cookies.clear()
    visitor.headers["Authorization"] = f"Bearer {key}"
    return visitor


class SteadyCaller(threading.Thread):
    """Calls a starter with rows of its own until it is stopped; every answer is held against ONNX Runtime in here."""

    def __init__(self, client: httpx.Client, bundle: Bundle, seed: int) -> None:
        super().__init__(name=f"steady-{seed}")
        self._client = client
        self._session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
        (self._input,) = bundle.manifest.inputs
        self._path = f"/v2/models/{bundle.manifest.name.replace('/', '--')}/infer"
        self._random = np.random.default_rng(seed)
        self._stop_asked = threading.Event()
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._stop_asked.wait(0.005):
            try:
                self._call()
            except Exception as error:  # told by the test that stops us
                self.failures.append(f"{type(error).__name__}: {error}")

    def _call(self) -> None:
        shape = [1 if size < 0 else size for size in self._input.shape]
        rows = self._random.normal(size=shape).astype(np.float32)
        tensor = {"name": self._input.name, "datatype": "FP32", "shape": shape, "data": rows.ravel().tolist()}
        answer = self._client.post(self._path, json={"inputs": [tensor]})
        if answer.status_code != 200:
            self.failures.append(answer.text)
            return
        (got,) = answer.json()["outputs"]
        (wanted,) = self._session.run([got["name"]], {self._input.name: rows})
        if not np.allclose(np.reshape(got["data"], got["shape"]), wanted, rtol=1e-5, atol=1e-6):
            self.failures.append(f"wrong numbers: {got['data']} is not {wanted.tolist()}")
        self.answered += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()
