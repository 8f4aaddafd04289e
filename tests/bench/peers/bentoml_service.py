"""BentoML, one worker, asynchronous API, access log off: its best of the configurations in ../../../docs/benchmarks.md.

Runs in its own venv: `bentoml serve bentoml_service:Tiny`; the model's path is in BENCH_MODEL.
"""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Tiny:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(route="/infer")
    async def infer(self, inputs: list) -> dict:
        tensor = inputs[0]
        array = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        (values,) = self.session.run(["y"], {"x": array})
        output = {"name": "y", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
        return {"outputs": [output]}
