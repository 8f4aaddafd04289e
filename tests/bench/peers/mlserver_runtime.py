"""MLServer with its own ONNX Runtime runtime, in one process, metrics and gzip off: `mlserver start FOLDER`.

FOLDER holds this file, settings.json and model-settings.json, which `tests.bench.servers` writes.
"""

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class TinyRuntime(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        array = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        (values,) = self.session.run(["y"], {"x": array})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", values)])
