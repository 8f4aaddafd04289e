"""Serves the kit's models on MLServer: `mlserver start FOLDER`, in MLServer's own environment with onnxruntime.

It refuses what a runtime has to refuse, so that what fails is the server's and not this file's.
"""

from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.errors import InferenceError  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput  # type: ignore[import-not-found]
from mlserver.utils import get_model_uri  # type: ignore[import-not-found]

DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object",
}  # fmt: skip


class OnnxRuntime(MLModel):  # type: ignore[misc]  # mlserver is not installed here
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = await get_model_uri(self._settings)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input_types = {each.name: each.datatype for each in self.inputs or []}
        self.output_types = {each.name: each.datatype for each in self.outputs or []}
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        try:
            arrays = {each.name: self._array_of(each) for each in payload.inputs}
            asked = [each.name for each in payload.outputs or []] or list(self.output_types)
            values = self.session.run(asked, arrays)
        except InferenceError:
            raise
        except Exception as error:
            raise InferenceError(str(error)) from error
        outputs = [self._output_of(name, value) for name, value in zip(asked, values, strict=True)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

    def _array_of(self, tensor: Any) -> Any:
        if self.input_types.get(tensor.name) != tensor.datatype:
            raise InferenceError(f"the model has no input {tensor.name!r} of {tensor.datatype}")
        data = getattr(tensor.data, "root", tensor.data)
        return np.array(data, DTYPES[tensor.datatype]).reshape(tensor.shape)

    def _output_of(self, name: str, value: Any) -> ResponseOutput:
        return ResponseOutput(
            name=name, shape=list(value.shape), datatype=self.output_types[name], data=value.reshape(-1).tolist()
        )
