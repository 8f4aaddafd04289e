"""Triton's Python backend over one graph, with dynamic batching: the model.py of a model repository."""

import os
import sys

sys.path.insert(0, os.environ["BENCH_PACKAGES"])

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.environ["BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        arrays = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (values,) = self.session.run(["y"], {"x": np.concatenate(arrays)})
        answers, at = [], 0
        for array in arrays:
            answers.append(triton.InferenceResponse([triton.Tensor("y", values[at : at + len(array)])]))
            at += len(array)
        return answers
