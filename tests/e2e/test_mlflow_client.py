"""A notebook with MLflow's own client against a running market: log, call, alias, call again."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ulid import ULID

from tests.live import LiveMarket

NOTEBOOK = """
import sys
import mlflow
from tests.marketplace.linear_models import graph_of, weights_of

name = sys.argv[1]
for seed in (1, 2):
    with mlflow.start_run():
        mlflow.log_metric("mae", 0.25)
        info = mlflow.onnx.log_model(graph_of(weights_of(seed)), name="model", registered_model_name=name)
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", "1")
    print(info.registered_model_version, mlflow.onnx.load_model(f"models:/{name}@champion").graph.name)
"""


@pytest.mark.parametrize("key", ["vendor", "factory"])
def test_a_model_logged_with_mlflow_is_called_at_once_over_http(live_market: LiveMarket, key: str) -> None:
    client = live_market.client(key)
    slug = client.get("/api/v1/me").json()["organisation"]["slug"]
    name = f"{slug}--{str(ULID()).lower()}"
    environment = {
        "MLFLOW_TRACKING_URI": f"{live_market.url}/mlflow",
        "MLFLOW_TRACKING_TOKEN": live_market.keys[key],
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, name],
        env=live_market._environment | environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [line for line in told if line[-1:] == ["linear"]] == [["1", "linear"], ["2", "linear"]]

    from tests.marketplace.linear_models import weights_of

    rows = np.ones((2, 16), np.float32)
    body = {"inputs": [{"name": "x", "shape": [2, 16], "datatype": "FP32", "data": rows.ravel().tolist()}]}
    for selector, seed in (("", 2), ("/versions/champion", 1)):
        answer = client.post(f"/v2/models/{name}{selector}/infer", json=body)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(
            answer.json()["outputs"][0]["data"], (rows @ weights_of(seed) + 0.5).ravel(), rtol=1e-5
        )
    stranger = live_market.client("vendor" if key == "factory" else "factory")
    assert stranger.post(f"/v2/models/{name}/infer", json=body).status_code == 404
