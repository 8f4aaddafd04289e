"""The MiniLM base appears on the shelf by itself, and a factory fine-tunes it by LoRA on its own work orders."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from marketplace.client import Market, MarketError
from tests.live import LiveMarket

PARTS = {
    "hydraulic": ("hose", "cylinder", "pump", "valve bank"),
    "electrical": ("alternator", "head light", "wiring loom", "battery"),
    "engine": ("turbo", "fuel injector", "coolant line", "oil filter"),
}
FAULTS = ("replace broken {}", "{} is worn, check and change", "operator reports {} failed", "inspect {} on left side")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    market = LiveMarket(tmp_path_factory.mktemp("minilm") / "home", like=demo_home, ALGOMART_BUILD_MINILM="true")
    market.start()
    yield market
    market.stop()


def orders(folder: Path) -> Path:
    """48 short orders of three kinds."""
    lines = ["description,system"]
    for system, parts in PARTS.items():
        lines += [f'"{fault.format(part)}",{system}' for part, fault in itertools.product(parts, FAULTS)]
    path = folder / "orders.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def traced_when_there(factory: Market, usage_id: str) -> dict[str, Any]:
    """A record reaches the market's books within seconds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return factory.trace(usage_id)
        except MarketError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_minilm_is_built_in_the_background_and_fine_tuned_through_the_api(market: LiveMarket, tmp_path: Path) -> None:
    with Market(market.url, market.keys["engineer"]) as engineer, Market(market.url, market.keys["factory"]) as factory:
        deadline = time.monotonic() + 240
        while not (found := engineer.search("MiniLM", vendor="pearl"))["total"]:
            assert time.monotonic() < deadline, market.log
            time.sleep(0.5)
        assert found["items"][0]["name"] == "pearl/minilm-l6"
        texts = ["replace leaking hydraulic hose", "the light does not work"]
        with OpenAI(base_url=f"{market.url}/v1", api_key=market.keys["factory"]) as client:
            embedded = client.embeddings.create(model="pearl/minilm-l6", input=texts)
        used = factory.use("pearl/minilm-l6", [{"text": text} for text in texts])
        for item, row in zip(embedded.data, used["results"], strict=True):
            assert item.embedding == pytest.approx(row["embedding"], abs=1e-6)
        samples = engineer.upload_samples(orders(tmp_path), label_column="system")
        job = engineer.adapt(
            "text_lora",
            model="pearl/minilm-l6",
            sample_set_id=samples["id"],
            name="order-system",
            params={"epochs": 2, "max_length": 16},
        )
        result = job["result"]
        assert (result["name"], result["relation"]) == ("demo-factory/order-system", "adapter")
        assert result["parent"]["name"] == "pearl/minilm-l6"
        answer = factory.use(result["name"], {"text": "replace leaking hydraulic hose"})
        assert answer["result"]["label"] in PARTS
        tokens = [  # "replace leaking hydraulic hose" as the base's tokenizer has it; the adapter's logits over V2
            {"name": "input_ids", "datatype": "INT64", "shape": [1, 6], "data": [101, 5672, 24325, 14761, 21290, 102]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [1, 6], "data": [1] * 6},
        ]
        outputs = factory.infer(result["name"], tokens, outputs=[{"name": "logits"}])["outputs"]
        assert [(each["name"], each["shape"]) for each in outputs] == [("logits", [1, 64])]
        assert not any(outputs[0]["data"][len(PARTS) :]), "the room that three classes leave"
        traced = traced_when_there(factory, answer["usage_id"])
        assert traced["usage"]["model"] == traced["usage"]["adapter"] == "demo-factory/order-system@1"
        assert traced["adapter"]["base"] == "pearl/minilm-l6@1"
        assert traced["adapter"]["base_digest"] == result["parent"]["digest"]
        price = traced["price"]
        assert (price["kind"], price["micro_per_unit"]) == ("derivative", 200_000)  # the parent's, 0.2 fen a call
        assert traced["usage"]["amount_micro"] == 200_000
        assert traced["provider"]["name_en"] == engineer.model("pearl/minilm-l6")["vendor"]["name_en"]
        with httpx.Client(base_url=market.url, trust_env=False) as browser:
            password = json.loads((market.home / "demo-logins.json").read_text())["factory@demo.example"]
            browser.post("/api/v1/login", json={"email": "factory@demo.example", "password": password})
            page = browser.get(f"/console/usage/{answer['usage_id']}").text
        assert "pearl/minilm-l6@1" in page
    assert not (market.home / "starter-extra").exists()
