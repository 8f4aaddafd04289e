"""Ray Serve, one replica, `max_ongoing_requests=100`, joined calls. In its own venv: `python ray_server.py MODEL PORT`.

HAProxy in front or Ray's own proxy, as the environment says (`RAY_SERVE_ENABLE_HA_PROXY`); everything on loopback.
"""

import signal
import sys

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Tiny:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)
    async def run(self, arrays: list) -> list:
        (values,) = self.session.run(["y"], {"x": np.concatenate(arrays)})
        return np.split(values, np.cumsum([len(array) for array in arrays])[:-1])

    async def __call__(self, request: Request) -> dict:
        tensor = (await request.json())["inputs"][0]
        values = await self.run(np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"]))
        output = {"name": "y", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
        return {"outputs": [output]}


def listen_on_loopback() -> None:
    """A replica's port for its own proxy is open to every address, and Ray has no setting for it."""
    from ray.serve._private import replica

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


if __name__ == "__main__":
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": listen_on_loopback},
        _node_ip_address="127.0.0.1",
    )
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, logging_config=quiet)
    serve.run(Tiny.bind(sys.argv[1]), route_prefix="/", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
