"""Golden samples: inputs and the outputs expected of them, without ever unpickling.

Layout in a bundle::

    golden/<n>/inputs.npz    outputs.npz      plain tensors under their own names
    golden/<n>/inputs.json   outputs.json     only where needed: what .npz cannot say safely (BYTES, BF16, odd names)

The sidecar is `{"tensors": [{"name", "dtype", "shape", "data"}]}`; `data` is base64 of the little-endian bytes, for
BYTES a list of base64 strings. The `onnx` package's backend layout (`test_data_set_<n>/input_<i>.pb`) is read too.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from onnx import numpy_helper

from model_store.errors import Refusal, TooLarge, Unprocessable
from model_store.schema import OipType
from model_store.tensors import NUMPY_OF, OIP_OF_ONNX, Array, as_bytes_array, object_array, oip_of_array

MAX_GOLDEN_PAIRS = 64
MAX_GOLDEN_BYTES = 256 * 1024 * 1024
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]{0,198}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Golden:
    """One pair. `name` is the folder's name (a number); tensors by graph name, BYTES as object arrays of bytes."""

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def golden_unreadable(file: str, why: str) -> Unprocessable:
    """The refusal for any golden file that is not what its name says."""
    return Unprocessable(
        "GOLDEN_UNREADABLE",
        zh=f"样例文件 {file} 无法读取: {why}",
        en=f"golden file {file} cannot be read: {why}",
        remedy_zh="请用 numpy.savez (不含对象数组) 或 ONNX TensorProto (.pb) 重新保存样例",
        remedy_en="save the sample again with numpy.savez (no object arrays) or as an ONNX TensorProto (.pb)",
        field=file,
    )


# --- the bundle's own layout ------------------------------------------------------------------------------------------


def write_golden(bundle_folder: Path, pairs: Sequence[Golden]) -> None:
    """Write `golden/<name>/…` for every pair. Deterministic: the same tensors give the same bytes."""
    for pair in pairs:
        folder = bundle_folder / "golden" / pair.name
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder, "inputs", pair.inputs)
        write_tensors(folder, "outputs", pair.outputs)


def read_golden(bundle_folder: Path) -> list[Golden]:
    """Every pair of a bundle, in numeric order; [] where it has none. Raises `Unprocessable` GOLDEN_UNREADABLE."""
    return _read_pairs(bundle_folder / "golden")


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Array]) -> None:
    """`<stem>.npz` with the plain tensors and, only where needed, `<stem>.json` with the others."""
    others: list[dict[str, Any]] = []
    with zipfile.ZipFile(folder / f"{stem}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in tensors.items():
            array = np.asarray(value)
            oip = oip_of_array(array)
            if oip is None:
                raise golden_unreadable(f"{stem}.npz", f"{name}: {array.dtype}")
            if oip in ("BYTES", "BF16") or not _PLAIN_NAME.fullmatch(name):
                others.append(_as_json(name, oip, array))
                continue
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    if others:
        (folder / f"{stem}.json").write_text(json.dumps({"tensors": others}, indent=1), encoding="utf-8")


def read_tensors(folder: Path, stem: str) -> dict[str, Array]:
    """The tensors of `<stem>.npz` and `<stem>.json` (either may be absent, not both)."""
    archive, sidecar = folder / f"{stem}.npz", folder / f"{stem}.json"
    tensors: dict[str, Array] = {}
    if archive.is_file():
        tensors.update(_read_npz(archive))
    if sidecar.is_file():
        tensors.update(_read_sidecar(sidecar))
    if not archive.is_file() and not sidecar.is_file():
        raise golden_unreadable(f"{folder.name}/{stem}.npz", "missing")
    return tensors


def _as_json(name: str, oip: OipType, array: Array) -> dict[str, Any]:
    data: Any
    if oip == "BYTES":
        data = [base64.b64encode(item).decode() for item in as_bytes_array(array).flat]
    else:
        data = base64.b64encode(array.astype(NUMPY_OF[oip]).tobytes()).decode()
    return {"name": name, "dtype": oip, "shape": list(array.shape), "data": data}


def _read_npz(path: Path) -> dict[str, Array]:
    """`np.load` would allocate whatever a header claims; here every header is checked against its entry's size."""
    label = f"{path.parent.name}/{path.name}"
    tensors: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(label, sum(entry.file_size for entry in archive.infolist()))
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                tensors[name] = _read_npy(archive.read(entry))
    except Refusal:
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds on hostile bytes; all mean the same here
        raise golden_unreadable(label, str(error)[:200]) from error
    return tensors


def _read_npy(content: bytes) -> Array:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version}")
    if dtype.hasobject:
        raise ValueError("object arrays are pickles")
    left = len(content) - stream.tell()
    if math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"header says {shape} {dtype}, {left} bytes follow")
    flat = np.frombuffer(content, dtype=dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
    if dtype.kind in "SU":
        return as_bytes_array(array)
    if array.dtype not in set(NUMPY_OF.values()):
        raise ValueError(f"dtype {dtype}")
    return array


def _read_sidecar(path: Path) -> dict[str, Array]:
    label = f"{path.parent.name}/{path.name}"
    _check_size(label, path.stat().st_size)
    tensors: dict[str, Array] = {}
    try:
        for item in json.loads(path.read_bytes())["tensors"]:
            name, oip, shape = str(item["name"]), item["dtype"], [int(size) for size in item["shape"]]
            if oip not in get_args(OipType) or min(shape, default=0) < 0:
                raise ValueError(f"{name}: {oip} {shape}")
            if oip == "BYTES":
                items = [base64.b64decode(text, validate=True) for text in item["data"]]
                tensors[name] = object_array(items, shape)
            else:
                raw = base64.b64decode(item["data"], validate=True)
                tensors[name] = np.frombuffer(raw, dtype=NUMPY_OF[oip]).reshape(shape).copy()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise golden_unreadable(label, str(error)[:200]) from error
    return tensors


def _check_size(label: str, found: int) -> None:
    if found > MAX_GOLDEN_BYTES:
        raise TooLarge(
            "GOLDEN_TOO_LARGE",
            zh=f"样例文件 {label} 超过 {MAX_GOLDEN_BYTES} 字节",
            en=f"golden file {label} is over {MAX_GOLDEN_BYTES} bytes",
            remedy_zh="样例只需几行数据",
            remedy_en="a few rows are enough for a golden sample",
            field=label,
        )


# --- reading what a vendor hands in -----------------------------------------------------------------------------------


def read_golden_folder(folder: Path, input_names: Sequence[str], output_names: Sequence[str]) -> list[Golden]:
    """Golden pairs from a folder in any of the layouts people have.

    A backend case (`test_data_set_<n>/input_<i>.pb`) or one of its data sets; a `golden/` folder (`<n>/inputs.npz`), a
    folder that holds one, or one pair. `.pb` files follow the order of `input_names` (graph inputs without
    initializers) unless they name their tensor. Raises `Unprocessable` GOLDEN_UNREADABLE, GOLDEN_MISSING.
    """
    data_sets = sorted(folder.glob("test_data_set_*"), key=_number)
    if any(folder.glob("input_*.pb")) or any(folder.glob("output_*.pb")):
        data_sets = [folder]
    if data_sets:
        _check_count(len(data_sets))
        return [
            Golden(str(index), _read_protos(each, "input", input_names), _read_protos(each, "output", output_names))
            for index, each in enumerate(data_sets)
        ]
    if (folder / "golden").is_dir():
        folder = folder / "golden"
    if (folder / "inputs.npz").is_file() or (folder / "inputs.json").is_file():
        return [Golden("0", read_tensors(folder, "inputs"), read_tensors(folder, "outputs"))]
    pairs = _read_pairs(folder)
    if not pairs:
        raise Unprocessable(
            "GOLDEN_MISSING",
            zh="样例文件夹中没有 test_data_set_<n>/ 也没有 <n>/inputs.npz",
            en="the golden folder holds neither test_data_set_<n>/ nor <n>/inputs.npz",
            remedy_zh="每个样例一个文件夹: 0/inputs.npz 与 0/outputs.npz, 或 test_data_set_0/input_0.pb 与 output_0.pb",
            remedy_en="one folder a sample: 0/inputs.npz and 0/outputs.npz, or test_data_set_0/input_0.pb and"
            " test_data_set_0/output_0.pb",
            field="golden",
        )
    return pairs


def _read_pairs(folder: Path) -> list[Golden]:
    if not folder.is_dir():
        return []
    folders = sorted((each for each in folder.iterdir() if each.is_dir()), key=_number)
    _check_count(len(folders))
    return [Golden(each.name, read_tensors(each, "inputs"), read_tensors(each, "outputs")) for each in folders]


def _check_count(count: int) -> None:
    if count > MAX_GOLDEN_PAIRS:
        raise TooLarge(
            "GOLDEN_TOO_MANY",
            zh=f"样例 {count} 组, 最多 {MAX_GOLDEN_PAIRS} 组",
            en=f"{count} golden pairs; at most {MAX_GOLDEN_PAIRS}",
            remedy_zh="请减少样例数量",
            remedy_en="keep fewer samples",
            field="golden",
        )


def _read_protos(folder: Path, kind: str, names: Sequence[str]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for index, path in enumerate(sorted(folder.glob(f"{kind}_*.pb"), key=_number)):
        label = f"{folder.name}/{path.name}"
        _check_size(label, path.stat().st_size)
        proto = onnx.TensorProto()
        try:
            proto.ParseFromString(path.read_bytes())
            array = array_of_proto(proto)
        except Refusal:
            raise
        except Exception as error:  # protobuf's DecodeError and numpy_helper's own kinds; all mean the same here
            raise golden_unreadable(label, str(error)[:200]) from error
        name = proto.name if proto.name in names else names[index] if index < len(names) else ""
        if not name or name in tensors:
            raise golden_unreadable(label, f"the graph has {len(names)} {kind}s: {', '.join(names)}"[:200])
        tensors[name] = array
    return tensors


def array_of_proto(proto: onnx.TensorProto) -> Array:
    """TensorProto → array (BYTES as bytes). Raises ValueError for external data: it could name any file."""
    if proto.data_location == onnx.TensorProto.EXTERNAL or proto.external_data:
        raise ValueError("external data is not allowed in a sample")
    if proto.data_type not in OIP_OF_ONNX:
        raise ValueError(f"element type {proto.data_type} is not a tensor of the inference protocol")
    if proto.data_type == onnx.TensorProto.STRING:
        return object_array(list(proto.string_data), list(proto.dims))
    array: Array = numpy_helper.to_array(proto)
    expected = NUMPY_OF[OIP_OF_ONNX[proto.data_type]]
    if array.dtype != expected:
        raise ValueError(f"read as {array.dtype}, expected {expected}")
    return array


def _number(path: Path) -> tuple[int, str]:
    """Sorts `input_10.pb` after `input_2.pb`."""
    digits = re.findall(r"\d+", path.name)
    return (int(digits[-1]) if digits else -1, path.name)
