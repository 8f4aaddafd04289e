"""With ALGOMART_INGEST=thread the market ingests in its own process, and all else is as with a process beside it."""

from __future__ import annotations

import psutil

from tests.live import LiveMarket
from tests.neighbours import ask

STARTER = "lingnan--steel-faults-linear"


def test_a_market_may_ingest_in_a_thread_of_its_own(tmp_path, demo_home):
    market = LiveMarket(tmp_path / "home", like=demo_home, ALGOMART_INGEST="thread")
    market.start()
    try:
        children = [" ".join(child.cmdline()) for child in psutil.Process(market.pid).children()]
        assert not [command for command in children if "marketplace.usage.child" in command]
        factory = market.client("factory")
        (tensor,) = ask(factory.get(f"/v2/models/{STARTER}"))["inputs"]
        shape = [1 if size < 0 else size for size in tensor["shape"]]
        tensor |= {"shape": shape, "data": [0.5] * shape[-1]}
        answer = factory.post(f"/v2/models/{STARTER}/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200
        usage_id = answer.headers["x-usage-id"]
        while ask(factory.get("/v2/health/ready"))["ingest"]["behind_bytes"]:
            pass
        usage = ask(factory.get("/api/v1/usage"))["items"]
        assert [row["usage_id"] for row in usage] == [usage_id]
        assert "algomart_ingest_records_total 1\n" in factory.get("/metrics").text
    finally:
        assert market.stop() == 0
