"""The manifest: a closed description, the same after any journey, read from the shelf as it ships."""

import json
import zipfile
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from model_store.bundle import canonical_manifest, parse_manifest
from model_store.errors import Unprocessable
from model_store.manifest import Manifest
from model_store.processing import decoding, steps
from model_store.schema import OipType
from model_store.step_specs import PostStep, PreStep
from model_store.tensors import NUMPY_OF

SHELF = sorted((Path(__file__).parents[2] / "marketplace" / "catalogue" / "starter").glob("*.zip"))
LEAST = {"name": "acme/m", "inputs": [], "outputs": []}


def test_the_least_manifest_is_a_bare_tensor_model() -> None:
    manifest = Manifest.model_validate(LEAST)
    assert (manifest.task, manifest.modality, manifest.tier, manifest.adaptable) == (
        "tensor",
        "tensor",
        "small",
        "none",
    )
    assert manifest.filing.genai_service == "none"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"tier": "huge"}, "tier"),
        ({"inputs": [{"name": "x", "dtype": "FP8", "shape": [1]}]}, "inputs.0.dtype"),
        ({"pre": [{"op": "python", "code": "import os"}]}, "pre.0"),
        ({"post": [{"op": "softmax", "tensor": "y", "exec": "x"}]}, "post.0.softmax.exec"),
        ({"links": ["倒卖"]}, "links.0"),
        ({"entry_point": "run.py"}, "entry_point"),
    ],
)
def test_what_the_schema_does_not_have_is_refused_by_its_field(more: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(LEAST | more)
    with pytest.raises(Unprocessable) as error:
        parse_manifest(json.dumps(LEAST | more).encode())
    assert error.value.field == field
    assert error.value.details["problems"]


def test_every_step_that_a_manifest_may_list_can_be_run() -> None:
    pre, post = (set(get_args(get_args(union)[0])) for union in (PreStep, PostStep))
    assert pre == set(steps.STEPS)
    assert post == set(decoding.STEPS)


def test_every_type_of_the_protocol_has_a_numpy_type() -> None:
    assert set(get_args(OipType)) == set(NUMPY_OF)


@pytest.mark.parametrize("path", SHELF, ids=lambda path: path.stem)
def test_a_manifest_of_the_shelf_is_canonical(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        content = archive.read("manifest.json")
    again = json.loads(canonical_manifest(parse_manifest(content)))
    written = json.loads(content)
    assert {name: again[name] for name in written} == written  # fields added since have their defaults
