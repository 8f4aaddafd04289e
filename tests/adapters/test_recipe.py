"""Recipes as declared: what they take, and what they refuse before anything runs."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.recipe import RECIPE_NAMES, Parameter, recipe_named, recipes
from model_store.errors import BadInput, NotFound, Refusal, Unprocessable
from model_store.manifest import AdapterOf, Manifest, TensorSpec


def manifest(**changes: object) -> Manifest:
    plain = {
        "name": "acme/base", "task": "tabular-classification", "modality": "tabular", "adaptable": "calibrate",
        "inputs": [TensorSpec(name="x", dtype="FP32", shape=[-1, 2])],
        "outputs": [TensorSpec(name="y", dtype="FP32", shape=[-1, 2])],
    }  # fmt: skip
    return Manifest.model_validate({**plain, **changes})


def test_every_recipe_is_registered_under_its_own_name() -> None:
    assert tuple(recipes()) == RECIPE_NAMES


def test_the_registry_is_read_without_torch_or_scikit_learn() -> None:
    script = (
        "import sys; from adapters.recipe import recipes; [r.card() for r in recipes().values()];"
        "print([m for m in ('torch', 'sklearn', 'onnxruntime', 'onnx', 'pandas', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_accepts_its_own_defaults_and_names_things_in_both_languages(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.check({}) == {parameter.name: parameter.default for parameter in recipe.parameters}
    assert all((recipe.title_zh, recipe.title_en, recipe.summary_zh, recipe.summary_en))
    assert all(parameter.zh and parameter.en for parameter in recipe.parameters)


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotFound) as refused:
        recipe_named("alchemy")
    assert "tabular_retrain" in refused.value.remedy_en


def test_a_parameter_out_of_bounds_is_refused_by_field_and_bounds() -> None:
    with pytest.raises(BadInput) as refused:
        recipe_named("text_lora").check({"epochs": 10_000})
    assert (refused.value.code, refused.value.field) == ("PARAMETER_INVALID", "params.epochs")
    assert "1 … 20" in refused.value.remedy_zh


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(BadInput, match="PARAMETER_UNKNOWN"):
        recipe_named("text_lora").check({"epoch": 3})


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_any_value_is_typed_or_refused(value: object) -> None:
    parameter = Parameter("epochs", "integer", 4, 1, 20)
    try:
        checked = parameter.check(value)
    except BadInput:
        return
    assert isinstance(checked, int)
    assert 1 <= checked <= 20


def test_a_number_from_a_form_field_is_taken_as_a_number() -> None:
    assert Parameter("rate", "number", 0.1, 0, 1).check("0.25") == 0.25


@pytest.mark.parametrize(
    ("parent", "code"),
    [
        (None, "PARENT_NEEDED"),
        (manifest(task="embedding", modality="image"), "PARENT_NOT_FOR_RECIPE"),
        (manifest(adaptable="none"), "PARENT_NOT_ADAPTABLE"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused(parent: Manifest | None, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        recipe_named("tabular_calibrate").check_parent(parent)
    assert refused.value.code == code


def test_a_vendor_that_opens_nothing_still_lets_others_retrain_on_its_schema() -> None:
    recipe_named("tabular_retrain").check_parent(manifest(adaptable="none"))
    with pytest.raises(Unprocessable):
        recipe_named("quantise").check_parent(manifest(adaptable="none"))


def test_an_adapter_is_no_parent_its_base_is() -> None:
    """It has no graph of its own that a recipe could change."""
    of = AdapterOf(name="acme/base", version=1, digest="0" * 64)
    tensor = TensorSpec(name="x", dtype="FP32", shape=[-1, 3])
    own = Manifest(name="factory/own", task="tabular-regression", modality="tabular", adaptable="calibrate",
                   inputs=[tensor], outputs=[tensor], adapter_of=of)  # fmt: skip
    with pytest.raises(Refusal, match="PARENT_IS_ADAPTER") as caught:
        recipe_named("tabular_calibrate").check_parent(own)
    assert "acme/base" in caught.value.remedy_en
