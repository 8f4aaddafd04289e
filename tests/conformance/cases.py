"""The backend cases of the `onnx` package: a model, its inputs and the outputs expected of it, with its tolerance."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

CASES = Path(__file__).parents[3] / "shared" / "data" / "onnx_cases"
NEEDED = 630

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One case. `inputs` and `expected` by tensor name; text is an object array of `bytes`."""

    index: int
    name: str
    folder: Path
    rtol: float
    atol: float
    json_servable: bool
    binary_servable: bool
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @property
    def slug(self) -> str:
        """A model slug: lawful, at most 48 characters, unique by its number."""
        readable = "".join(c if c.isalnum() or c in "._" else "_" for c in self.name.lower().removeprefix("test_"))
        return f"onnx{self.index:03d}-{readable[:38]}".rstrip("-")

    @property
    def model(self) -> bytes:
        return (self.folder / "model.onnx").read_bytes()

    @property
    def golden_zip(self) -> bytes:
        """The case's data sets as a zip, in the layout in which the `onnx` package ships them."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.folder.glob("test_data_set_*/*.pb")):
                archive.write(path, path.relative_to(self.folder).as_posix())
        return stream.getvalue()

    def inputs(self) -> Arrays:
        return self._read("input", self.input_names)

    def expected(self) -> Arrays:
        return self._read("output", self.output_names)

    def _read(self, kind: str, names: tuple[str, ...]) -> Arrays:
        folder = self.folder / "test_data_set_0"
        return {name: _read_tensor(folder / f"{kind}_{index}.pb") for index, name in enumerate(names)}


def _read_tensor(path: Path) -> NDArray[Any]:
    proto = onnx.TensorProto.FromString(path.read_bytes())
    if proto.data_type != onnx.TensorProto.STRING:
        return np.asarray(numpy_helper.to_array(proto))
    array = np.empty(len(proto.string_data), dtype=object)
    array[:] = list(proto.string_data)
    return array.reshape(tuple(proto.dims))


def load_cases(folder: Path, count: int | None = None, seed: int = 0) -> list[Case]:
    """Extract the archive into `folder` and list the cases, or a seeded sample of `count` of them in their order."""
    listed = json.loads((CASES / "cases.json").read_bytes())["cases"]
    with tarfile.open(CASES / "cases.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    cases = [
        Case(
            index=index,
            name=item["name"],
            folder=folder / item["path"],
            rtol=item["rtol"],
            atol=item["atol"],
            json_servable=item["json_servable"],
            binary_servable=item["binary_servable"],
            input_names=tuple(each["name"] for each in item["inputs"]),
            output_names=tuple(each["name"] for each in item["outputs"]),
        )
        for index, item in enumerate(listed)
    ]
    if count is None or count >= len(cases):
        return cases
    # S311: a sample to test with, no secret
    return sorted(random.Random(seed).sample(cases, count), key=lambda case: case.index)
