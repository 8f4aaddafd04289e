"""An MLflow model of an ONNX graph, one thread: `python mlflow_model.py MODEL FOLDER`, in MLflow's own venv."""

import sys

import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import infer_signature

if __name__ == "__main__":
    graph = onnx.load(sys.argv[1])
    shapes = {
        each.name: [dimension.dim_value or 1 for dimension in each.type.tensor_type.shape.dim]
        for each in (*graph.graph.input, *graph.graph.output)
    }
    inputs, outputs = (
        {each.name: np.zeros(shapes[each.name], np.float32) for each in part}
        for part in (graph.graph.input, graph.graph.output)
    )
    mlflow.onnx.save_model(
        graph,
        sys.argv[2],
        signature=infer_signature(inputs, outputs),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        pip_requirements=["mlflow", "onnxruntime"],
    )
