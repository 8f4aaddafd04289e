"""KServe's Python server over one graph: `python kserve_server.py MODEL PORT`."""

import sys

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class Tiny(Model):
    def __init__(self, path):
        super().__init__("tiny")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        (values,) = self.session.run(["y"], {"x": payload.inputs[0].as_numpy()})
        output = InferOutput("y", list(values.shape), "FP32", values.ravel().tolist())
        return InferResponse(payload.id or "0", self.name, [output])  # without an id it answers 500


if __name__ == "__main__":
    server = ModelServer(
        http_port=int(sys.argv[2]), workers=1, enable_grpc=False, enable_latency_logging=False, enable_docs_url=False
    )
    server.start([Tiny(sys.argv[1])])
