"""Writes the kit's models with what each kind of server needs to serve them.

FOLDER/algomart (bundles) · FOLDER/triton (a model repository) · FOLDER/mlserver · FOLDER/kserve. Neither MLServer nor
KServe's Python server runs ONNX by itself, so a small runtime in each one's own documented manner lies beside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from model_store.bundle import MANIFEST, seal
from model_store.manifest import Manifest, TensorSpec
from model_store.names import canonical
from serving.conformance.models import PREFIX, KitModel, TensorInfo, kit_models

RUNTIMES = Path(__file__).parent / "serve_with"


def export(folder: Path, prefix: str = PREFIX) -> None:
    """Write all of it, over what is there. `prefix` must end in `--` for AlgoMart, whose models have a vendor."""
    writers: dict[str, Callable[[Path, str, KitModel], None]] = {
        "algomart": _algomart, "triton": _triton, "mlserver": _mlserver, "kserve": _kserve,
    }  # fmt: skip
    for kind, write in writers.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for model in kit_models():
            own = folder / kind / f"{prefix}{model.name}"
            own.mkdir(exist_ok=True)
            write(own, prefix, model)
    shutil.copy(RUNTIMES / "mlserver_runtime.py", folder / "mlserver")
    shutil.copy(RUNTIMES / "kserve_server.py", folder / "kserve")


def _algomart(own: Path, prefix: str, model: KitModel) -> None:
    (own / MANIFEST).unlink(missing_ok=True)
    onnx.save(model.graph, str(own / "model.onnx"))
    manifest = Manifest.model_validate(
        {
            "name": canonical(f"{prefix}{model.name}".replace("--", "/", 1)),
            "title_zh": model.name,
            "title_en": model.name,
            "inputs": [_spec(each) for each in model.inputs],
            "outputs": [_spec(each) for each in model.outputs],
            "batching": {"dynamic": model.batched},
        }
    )
    seal(own, manifest)


def _spec(tensor: TensorInfo) -> TensorSpec:
    return TensorSpec.model_validate({"name": tensor.name, "dtype": tensor.datatype, "shape": list(tensor.shape)})


def _triton(own: Path, prefix: str, model: KitModel) -> None:
    (own / "1").mkdir(exist_ok=True)
    onnx.save(model.graph, str(own / "1" / "model.onnx"))
    lines = [f'name: "{prefix}{model.name}"', 'backend: "onnxruntime"', f"max_batch_size: {8 if model.batched else 0}"]
    for field, tensors in (("input", model.inputs), ("output", model.outputs)):
        lines += [f"{field} [ {_triton_tensor(each, model.batched)} ]" for each in tensors]
    (own / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _triton_tensor(tensor: TensorInfo, batched: bool) -> str:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims: Sequence[int] = tensor.shape[1:] if batched else tensor.shape
    # Triton has no dims of none: a scalar is one element that is reshaped.
    shape = f"dims: {list(dims)}" if dims else "dims: [1] reshape: { shape: [] }"
    return f'{{ name: "{tensor.name}" data_type: TYPE_{kind} {shape} }}'


def _mlserver(own: Path, prefix: str, model: KitModel) -> None:
    onnx.save(model.graph, str(own / "model.onnx"))
    settings = {
        "name": f"{prefix}{model.name}",
        "platform": "onnxruntime_onnx",
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": "./model.onnx", "version": "1"},
        "inputs": [_described(each) for each in model.inputs],
        "outputs": [_described(each) for each in model.outputs],
    }
    (own / "model-settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _described(tensor: TensorInfo) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _kserve(own: Path, prefix: str, model: KitModel) -> None:
    onnx.save(model.graph, str(own / "model.onnx"))
