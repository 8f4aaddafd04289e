"""Serves one of the kit's models on Triton's Python backend, where the ONNX Runtime backend is not at hand."""

import json
import os
import sys
from typing import Any

# Triton's own stub brings no packages: onnxruntime and numpy are found where this variable says, if it is set.
sys.path[:0] = [path for path in os.environ.get("KIT_PACKAGES", "").split(os.pathsep) if path]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # noqa: E402


class TritonPythonModel:
    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        self.inputs = [each["name"] for each in config["input"]]
        self.dtypes = {each["name"]: triton.triton_string_to_numpy(each["data_type"]) for each in config["output"]}
        path = os.path.join(arguments["model_repository"], arguments["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        names = request.requested_output_names()
        try:
            arrays = {name: _text_of(triton.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs}
            values = self.session.run(names, arrays)
        except Exception as error:
            return triton.InferenceResponse([], triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        tensors = [
            triton.Tensor(name, np.asarray(value).astype(self.dtypes[name], copy=False))
            for name, value in zip(names, values, strict=True)
        ]
        return triton.InferenceResponse(tensors)


def _text_of(array: Any) -> Any:
    """Triton gives BYTES as `bytes`; ONNX Runtime takes text."""
    if array.dtype.kind != "O":
        return array
    text = np.empty(array.shape, np.object_)
    for index, item in np.ndenumerate(array):
        text[index] = item.decode()
    return text
