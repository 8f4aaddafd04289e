"""The reference: a bare raw-ASGI application on uvicorn + uvloop + httptools + orjson + ONNX Runtime, run inline.

No routing, no key, no meter, no metrics: what the market is compared with. `python -m tests.bench.reference MODEL
PORT`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
import orjson
import uvicorn


def application(model: str) -> Any:
    """The bare ASGI application over one graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        tensor = orjson.loads(body)["inputs"][0]
        array = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        (values,) = session.run(["y"], {"x": array})
        answer = {
            "model_name": "tiny",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": values.shape, "data": values.ravel()}],
        }
        content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


def main(model: str, port: int) -> None:
    uvicorn.run(
        application(model),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
