"""Writes the kit's models with what each kind of server needs to serve them.

FOLDER/algomart (bundles) · FOLDER/triton and FOLDER/triton-python (model repositories for Triton's ONNX Runtime and
Python backends) · FOLDER/mlserver · FOLDER/kserve. What does not run ONNX by itself finds a small runtime beside it,
written in that server's own documented manner.
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

WITHOUT_BF16 = ("triton-python", "mlserver", "kserve")  # numpy and their tables of types have none
RUNTIMES = Path(__file__).parent / "serve_with"


def export(folder: Path, prefix: str = PREFIX) -> None:
    """Write all of it, over what is there. `prefix` must end in `--` for AlgoMart, whose models have a vendor."""
    writers: dict[str, Callable[[Path, str, KitModel], None]] = {
        "algomart": _algomart, "triton": _triton, "triton-python": _triton_python, "mlserver": _mlserver,
        "kserve": _kserve,
    }  # fmt: skip
    for kind, write in writers.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for model in kit_models():
            if kind.startswith("triton") and _has_scalars(model):
                continue  # Triton: "scalar tensors are not supported" in a model that does not batch
            if kind in WITHOUT_BF16 and _has_bf16(model):
                continue
            own = folder / kind / f"{prefix}{model.name}"
            own.mkdir(exist_ok=True)
            write(own, prefix, model)
    shutil.copy(RUNTIMES / "mlserver_runtime.py", folder / "mlserver")
    shutil.copy(RUNTIMES / "kserve_server.py", folder / "kserve")


def _has_scalars(model: KitModel) -> bool:
    return any(not tensor.shape for tensor in (*model.inputs, *model.outputs))


def _has_bf16(model: KitModel) -> bool:
    return any(tensor.datatype == "BF16" for tensor in (*model.inputs, *model.outputs))


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


def _triton_python(own: Path, prefix: str, model: KitModel) -> None:
    _triton(own, prefix, model, "python")
    shutil.copy(RUNTIMES / "triton_model.py", own / "1" / "model.py")


def _triton(own: Path, prefix: str, model: KitModel, backend: str = "onnxruntime") -> None:
    (own / "1").mkdir(exist_ok=True)
    onnx.save(model.graph, str(own / "1" / "model.onnx"))
    lines = [f'name: "{prefix}{model.name}"', f'backend: "{backend}"', f"max_batch_size: {8 if model.batched else 0}"]
    for field, tensors in (("input", model.inputs), ("output", model.outputs)):
        lines += [f"{field} [ {_triton_tensor(each, model.batched)} ]" for each in tensors]
    (own / "config.pbtxt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _triton_tensor(tensor: TensorInfo, batched: bool) -> str:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims: Sequence[int] = tensor.shape[1:] if batched else tensor.shape
    return f'{{ name: "{tensor.name}" data_type: TYPE_{kind} dims: {list(dims)} }}'


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
