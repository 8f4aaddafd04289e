"""Serves the kit's models on KServe's Python server: `python kserve_server.py FOLDER PORT`, in its own environment.

It refuses what a model has to refuse, so that what fails is the server's and not this file's.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import uvicorn
from kserve import InferOutput, InferResponse, Model, ModelServer  # type: ignore[import-not-found]
from kserve.errors import InvalidInput  # type: ignore[import-not-found]
from kserve.protocol.rest import server as rest  # type: ignore[import-not-found]

OIP = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64",
    "string": "BYTES",
}  # fmt: skip


class OnnxModel(Model):  # type: ignore[misc]  # kserve is not installed here
    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return [_described(each) for each in self.session.get_inputs()]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [_described(each) for each in self.session.get_outputs()]

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> InferResponse:
        types = {each["name"]: each["datatype"] for each in self.get_output_types()}
        asked = [each.name for each in payload.request_outputs or []] or list(types)
        try:
            arrays = {each.name: self._array_of(each) for each in payload.inputs}
            values = self.session.run(asked, arrays)
        except Exception as error:
            raise InvalidInput(str(error)) from error
        outputs = []
        binary = bool((payload.parameters or {}).get("binary_data_output"))
        wanted = {each.name: (each.parameters or {}).get("binary_data") for each in payload.request_outputs or []}
        for name, value in zip(asked, values, strict=True):
            output = InferOutput(name, list(value.shape), types[name])
            output.set_data_from_numpy(value, binary_data=bool(binary if wanted.get(name) is None else wanted[name]))
            outputs.append(output)
        return InferResponse(payload.id or "0", self.name, outputs)  # without an id it answers 500

    def _array_of(self, tensor: Any) -> Any:
        types = {each["name"]: each["datatype"] for each in self.get_input_types()}
        if types.get(tensor.name) != tensor.datatype:
            raise InvalidInput(f"the model has no input {tensor.name!r} of {tensor.datatype}")
        return tensor.as_numpy()


def _described(tensor: Any) -> dict[str, Any]:
    kind = OIP[tensor.type.removeprefix("tensor(").removesuffix(")")]
    return {"name": tensor.name, "datatype": kind, "shape": [s if isinstance(s, int) else -1 for s in tensor.shape]}


def _on_loopback(app: Any, **options: Any) -> uvicorn.Config:
    """KServe listens on every address and has no setting for it."""
    return uvicorn.Config(app, **{**options, "host": "127.0.0.1"})


if __name__ == "__main__":
    rest.uvicorn = SimpleNamespace(Config=_on_loopback, Server=uvicorn.Server)
    models = [OnnxModel(path) for path in sorted(Path(sys.argv[1]).iterdir()) if (path / "model.onnx").is_file()]
    server = ModelServer(http_port=int(sys.argv[2]), workers=1, enable_grpc=False, enable_docs_url=False)
    server.start(models)
