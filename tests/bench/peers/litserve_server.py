"""LitServe, one worker, one API server, fast queue. Runs in its own venv: `python litserve_server.py MODEL PORT`."""

import sys

import litserve
import numpy as np
import onnxruntime


class Tiny(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])

    def predict(self, array: np.ndarray) -> np.ndarray:
        (values,) = self.session.run(["y"], {"x": array})
        return values

    def encode_response(self, values: np.ndarray) -> dict:
        output = {"name": "y", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
        return {"outputs": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(Tiny(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
