"""What a bare .onnx says of its own inputs and outputs, read without loading weights or running anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model_store.errors import TooLarge, Unprocessable
from model_store.manifest import TensorSpec
from model_store.tensors import OIP_OF_ONNX, type_unsupported

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 2 * 1024**3  # protobuf's own bound; larger graphs keep their weights in external files


def read_graph_specs(path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs (without those that are initializers) and outputs of the graph in `path`; -1 for a dynamic dimension.

    Raises `Unprocessable` MODEL_MISSING, MODEL_IS_PICKLE, MODEL_NOT_ONNX, MODEL_EXTERNAL_DATA, TENSOR_TYPE_UNSUPPORTED;
    `TooLarge` MODEL_TOO_LARGE. The full check (operators, types) is inspection's.
    """
    model = read_model_proto(path)
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise Unprocessable(
            "MODEL_EXTERNAL_DATA",
            zh="该 .onnx 的权重在另外的文件中, 单独的 .onnx 不完整",
            en="the weights of this .onnx are in other files, so it is not complete by itself",
            remedy_zh="请把权重存入同一个文件 (onnx.save 时 save_as_external_data=False), 或发布包含权重文件的包",
            remedy_en="save the weights in the same file (onnx.save with save_as_external_data=False), or publish a"
            " bundle that holds the weight files",
            field="model.onnx",
        )
    return specs_of(model)


def specs_of(model: onnx.ModelProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Input and output specs of a parsed model."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [_spec(value) for value in model.graph.input if value.name not in initializers]
    return inputs, [_spec(value) for value in model.graph.output]


def overridable_specs_of(model: onnx.ModelProto) -> list[TensorSpec]:
    """Specs of the initializers that are inputs too, which a run may override."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [_spec(value) for value in model.graph.input if value.name in initializers]


def read_model_proto(path: Path) -> onnx.ModelProto:
    """Parse a .onnx file; external weights stay where they are. Raises as `read_graph_specs`."""
    if not path.is_file():
        raise Unprocessable(
            "MODEL_MISSING",
            zh=f"没有文件 {path.name}",
            en=f"there is no file {path.name}",
            remedy_zh="请检查路径",
            remedy_en="check the path",
            field=path.name,
        )
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise TooLarge(
            "MODEL_TOO_LARGE",
            zh=f"{path.name} 超过 {MAX_MODEL_BYTES} 字节",
            en=f"{path.name} is over {MAX_MODEL_BYTES} bytes",
            remedy_zh="请把权重放在外部文件并以包的形式发布",
            remedy_en="keep the weights in external files and publish a bundle",
            field=path.name,
        )
    import onnx

    content = path.read_bytes()
    _refuse_what_is_not_protobuf(content)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # DecodeError's home moves between protobuf versions
        raise _not_onnx("protobuf 解析失败 (文件可能不完整)", "it does not parse as protobuf (cut short?)") from error
    if model.ir_version < 1 or not model.opset_import or not model.graph.output:
        raise _not_onnx(
            "缺少 ir_version、opset 或输出 (文件可能不完整)", "ir_version, opset or outputs are missing (cut short?)"
        )
    return model


def _refuse_what_is_not_protobuf(content: bytes) -> None:
    """Name the usual mistakes. A pickle is only ever recognised by its first bytes, never opened."""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise Unprocessable(
            "MODEL_IS_PICKLE",
            zh="该文件是 pickle, 不是 ONNX; pickle 会执行任意代码, 一律拒收",
            en="the file is a pickle, not ONNX; a pickle runs code when opened, so it is never accepted",
            remedy_zh="请用 torch.onnx.export 或 skl2onnx 导出为 ONNX",
            remedy_en="export the model with torch.onnx.export or skl2onnx",
            field="model.onnx",
        )
    if not content:
        raise _not_onnx("文件为空", "the file is empty")
    kinds = {
        b"PK\x03\x04": "zip (PyTorch .pt?)",
        b"\x89HDF": "HDF5 (Keras .h5?)",
        b"GGUF": "GGUF",
        b"\x1f\x8b\x08": "gzip",
    }
    for magic, kind in kinds.items():
        if content.startswith(magic):
            raise _not_onnx(f"它是 {kind}", f"it is {kind}")


def _not_onnx(zh: str, en: str) -> Unprocessable:
    return Unprocessable(
        "MODEL_NOT_ONNX",
        zh=f"该文件不是完整的 ONNX 模型: {zh}",
        en=f"the file is not a complete ONNX model: {en}",
        remedy_zh="请重新导出为 ONNX 并完整上传 (用 onnx.checker.check_model 自查)",
        remedy_en="export to ONNX again and upload all of it (onnx.checker.check_model tells)",
        field="model.onnx",
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or value.type.tensor_type.elem_type not in OIP_OF_ONNX:
        code = value.type.tensor_type.elem_type if kind == "tensor_type" else 0
        found = onnx.TensorProto.DataType.Name(code).lower() if kind == "tensor_type" else str(kind)
        raise type_unsupported(value.name, found)
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return TensorSpec(name=value.name, dtype=OIP_OF_ONNX[tensor.elem_type], shape=[-1 if d < 0 else d for d in shape])
