"""The physical limit of Python, nearly: a bare `asyncio.Protocol` + httptools + uvloop + orjson + ONNX Runtime inline.

No framework, no routing, no key, no meter; it answers whatever is posted. `python -m tests.bench.bare MODEL PORT`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import httptools
import numpy as np
import onnxruntime
import orjson
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


def protocol(model: str) -> type[asyncio.Protocol]:
    """The protocol class over one graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.parser = httptools.HttpRequestParser(self)
            self.body = b""

        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            tensor = orjson.loads(self.body)["inputs"][0]
            self.body = b""
            array = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
            (values,) = session.run(["y"], {"x": array})
            answer = {
                "model_name": "tiny",
                "model_version": "1",
                "outputs": [{"name": "y", "datatype": "FP32", "shape": values.shape, "data": values.ravel()}],
            }
            content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
            self.transport.write(HEAD % len(content) + content)

    return Bare


async def main(model: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(protocol(model), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
