"""From a fitted scikit-learn estimator or a torch module to an ONNX graph of one shape everywhere.

Every graph: opset 17 (ai.onnx.ml 3), one float32 input, the first dimension "N" dynamic, no zipmap; a classifier
answers "probabilities" [N, K] in the order of `classes_`, a regressor "value" [N, 1].
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from adapters import graphs, trees
from adapters.thresholds import floor_thresholds


def sklearn_graph(estimator: Any, width: int, tensor: str = "features") -> onnx.ModelProto:
    """A fitted estimator or pipeline as ONNX: `tensor` [N, width] → "probabilities" [N, K] or "value" [N, 1].

    Linear models, trees, forests, histogram boosting, perceptrons, nearest neighbours, and pipelines of them behind a
    scaler. Trees must have been grown on float32, or a threshold between two float32 neighbours may be crossed.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    classifier = hasattr(estimator, "classes_")
    floor_thresholds(estimator)
    made = convert_sklearn(
        estimator,
        initial_types=[(tensor, FloatTensorType([None, width]))],
        options={id(estimator): {"zipmap": False}} if classifier else None,
        target_opset={"": graphs.OPSET, "ai.onnx.ml": trees.ML_OPSET},
    )
    result = onnx.ModelProto()
    result.CopyFrom(made)
    result.doc_string = ""
    wanted = "probabilities" if classifier else made.graph.output[0].name
    if wanted not in {output.name for output in made.graph.output}:
        wanted = made.graph.output[-1].name
    kept = [output for output in made.graph.output if output.name == wanted]
    del result.graph.output[:]
    result.graph.output.extend(kept)
    trees.rename(result, wanted, "probabilities" if classifier else "value")
    drop_unused(result)
    declare_once(result)
    graphs.name_batch(result)
    onnx.checker.check_model(result)
    return result


def torch_graph(
    module: Any,
    example: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """A torch module as ONNX, the first dimension of every tensor dynamic, and those that `dynamic` names.

    `example`: a tensor or a tuple of tensors with a batch of two. The older exporter: it takes seconds instead of half
    a minute and keeps a zero bias (the newer one drops it); batch normalisation is folded into the convolutions.
    """
    import torch

    content = io.BytesIO()
    example = example if isinstance(example, tuple) else (example,)
    torch.onnx.export(
        module.eval(),
        example,
        content,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: {0: "N", **(dynamic or {}).get(name, {})} for name in (*inputs, *outputs)},
        opset_version=graphs.OPSET,
        dynamo=False,
    )
    model = onnx.load_model_from_string(content.getvalue())
    model.ir_version = graphs.IR_VERSION
    for node in model.graph.node:
        node.doc_string = ""  # it would hold the exporter's source paths
    graphs.name_batch(model)
    onnx.checker.check_model(model)
    return model


def declare_once(model: onnx.ModelProto) -> None:
    """Name each operator set once, in place: the converter may write the default one as `` and again, or twice."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        versions[domain] = max(entry.version, versions.get(domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove, in place, the nodes and constants that lead to no output (the label branch of a classifier)."""
    needed = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [constant for constant in model.graph.initializer if constant.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    del model.graph.value_info[:]
