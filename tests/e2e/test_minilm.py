"""The MiniLM base appears on the shelf by itself, and a factory fine-tunes it by LoRA on its own work orders."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from marketplace.client import Market
from tests.live import LiveMarket

PARTS = {
    "hydraulic": ("hose", "cylinder", "pump", "valve bank"),
    "electrical": ("alternator", "head light", "wiring loom", "battery"),
    "engine": ("turbo", "fuel injector", "coolant line", "oil filter"),
}
FAULTS = ("replace broken {}", "{} is worn, check and change", "operator reports {} failed", "inspect {} on left side")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMarket]:
    market = LiveMarket(tmp_path_factory.mktemp("minilm") / "home", ALGOMART_BUILD_MINILM="true")
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
        assert (result["name"], result["relation"]) == ("demo-factory/order-system", "finetune")
        assert result["parent"]["name"] == "pearl/minilm-l6"
        answer = factory.use(result["name"], {"text": "replace leaking hydraulic hose"})
        assert answer["result"]["label"] in PARTS
    assert not (market.home / "starter-extra").exists()
