"""The starter shelf: what ships answers as its card says, competes fairly, stays small, and gives no row away."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapters import datasets, measure
from adapters.recipes.shelf import assemble, boards, build
from adapters.recipes.shelf.family import Family, Parts
from model_store import fingerprint, golden
from model_store.bundle import Bundle, unpack
from model_store.processing.pipeline import Pipeline
from model_store.runtime import load_graph

SHELF = Path(__file__).resolve().parents[2] / "marketplace" / "catalogue" / "starter"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MAY_TRAIN = {
    source.title for source in vars(datasets).values() if isinstance(source, datasets.Source)
}  # what ../shared/data/README.md lets train what ships; neu, casting, etth, skab, ict_fault, fmc have no reader
NAMES = [entrant.name for _, entrant in build.entrants()]
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


@cache
def family_of(name: str) -> Family:
    return next(family for family, entrant in build.entrants() if entrant.name == name)


@cache
def parts_of(slug: str) -> Parts:
    return next(family for family in build.families() if family.slug == slug).load(SHARED)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Every shipped bundle, unpacked and verified file by file."""
    folder = tmp_path_factory.mktemp("shelf")
    found = [unpack(path, folder / path.stem) for path in sorted(SHELF.glob("*.zip"))]
    return {bundle.manifest.name: bundle for bundle in found}


def test_what_ships_is_what_the_families_declare(shelf: dict[str, Bundle]) -> None:
    assert sorted(shelf) == sorted(NAMES)
    assert len(shelf) >= 15


def test_the_shelf_covers_six_scenarios_and_four_families_of_three_rivals(shelf: dict[str, Bundle]) -> None:
    manifests = [bundle.manifest for bundle in shelf.values()]
    assert len({scenario for manifest in manifests for scenario in manifest.scenarios}) >= 6
    rivals = Counter(manifest.family for manifest in manifests)
    contested = [family for family, count in rivals.items() if count >= 3]
    assert len(contested) >= 4
    for family in contested:
        of_family = [manifest for manifest in manifests if manifest.family == family]
        assert len({tuple(feature.name for feature in manifest.features) for manifest in of_family}) == 1
        assert len({manifest.target.name for manifest in of_family if manifest.target}) == 1
        assert len({manifest.method for manifest in of_family}) == len(of_family)
        assert len({manifest.name.split("/")[0] for manifest in of_family}) >= 2


def test_rivals_ask_different_prices() -> None:
    for family in build.families():
        prices = [entrant.price.micro_per_unit for entrant in family.entrants]
        assert len(set(prices)) == len(prices)


def test_no_tier_is_faked(shelf: dict[str, Bundle]) -> None:
    assert {bundle.manifest.tier for bundle in shelf.values()} == {"small"}


def test_the_shelf_stays_within_its_budget() -> None:
    terms = yaml.safe_load((SHELF / "starter.yaml").read_text("utf-8"))
    total = sum(path.stat().st_size for path in SHELF.glob("*.zip"))
    assert total == terms["total_bytes"] <= terms["budget_bytes"] == build.BUDGET_BYTES
    assert set(terms["prices"]) == set(NAMES)
    assert terms["filed"]


def test_every_report_passed_and_is_about_the_zip_beside_it() -> None:
    assert build.check_reports(SHELF) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_is_described_in_both_languages_and_names_lawful_data(name: str, shelf: dict[str, Bundle]) -> None:
    manifest = shelf[name].manifest
    texts = (manifest.title_zh, manifest.title_en, manifest.summary_zh, manifest.summary_en, manifest.licence)
    assert all(texts)
    assert all(f.title_zh and f.title_en and f.aliases and f.example is not None for f in manifest.features)
    assert any("一" <= character <= "鿿" for f in manifest.features for character in "".join(f.aliases))
    assert all(label.title_zh and label.title_en for label in manifest.labels)
    trained = [source for source in manifest.data if source.use == "trained"]
    assert trained
    assert all(source.licence and len(source.split_fingerprint) == 64 for source in manifest.data)
    assert {source.title for source in trained} <= MAY_TRAIN
    for metric in manifest.metrics:
        assert metric.low is not None
        assert metric.low <= metric.value <= (metric.high or 0.0)
    card = (shelf[name].path / "card.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "局限" in card
    assert "Limits" in card


@pytest.mark.parametrize("name", NAMES)
def test_golden_samples_are_answered_as_the_original_did(name: str, shelf: dict[str, Bundle]) -> None:
    bundle = shelf[name]
    graph = load_graph(bundle.model_path)
    pairs = golden.read_golden(bundle.path)
    assert pairs
    for pair in pairs:
        found = graph.run(dict(pair.inputs))
        for tensor, expected in pair.outputs.items():
            np.testing.assert_allclose(
                found[tensor], expected, rtol=bundle.manifest.golden_rtol, atol=bundle.manifest.golden_atol
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_try_it_form_of_a_starter_works(name: str, shelf: dict[str, Bundle]) -> None:
    bundle = shelf[name]
    row = {feature.name: feature.example for feature in bundle.manifest.features}
    pipeline = Pipeline(bundle)
    (answer,) = pipeline.decode(load_graph(bundle.model_path).run(pipeline.encode([row])))
    assert {"label", "value", "anomaly_score", "embedding"} & set(answer)


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_the_metrics_on_the_card_are_measured_again_on_rows_never_trained_on(
    name: str, shelf: dict[str, Bundle]
) -> None:
    bundle, parts = shelf[name], parts_of(family_of(name).slug)
    again = {metric.name: metric for metric in assemble.measured(bundle, parts)}
    assert set(again) == {metric.name for metric in bundle.manifest.metrics}
    for metric in bundle.manifest.metrics:
        assert again[metric.name].value == pytest.approx(metric.value, rel=0.02, abs=0.005)
        assert again[metric.name].rows == metric.rows


@needs_data
@pytest.mark.parametrize("slug", [family.slug for family in build.families()])
def test_no_row_measured_on_was_trained_on_and_nothing_shown_is_a_row(slug: str, shelf: dict[str, Bundle]) -> None:
    parts = parts_of(slug)
    bundle = next(bundle for bundle in shelf.values() if bundle.manifest.family == slug)
    features = bundle.manifest.features
    known = fingerprint.read_rows(bundle.path)
    assert known is not None
    assert fingerprint.trained_on(parts.train.rows[:50], features, known).all()
    measured_on = parts.test if parts.scored is None else parts.test.take(parts.scored)
    assert not fingerprint.trained_on(measured_on.rows, features, known).any()
    test_hashes = set(fingerprint.row_hashes(parts.test.rows, features).tolist())
    shown = {feature.name: feature.example for feature in features}
    assert not fingerprint.trained_on([shown], features, known).any()
    assert fingerprint.row_hash(shown, features) not in test_hashes


@needs_data
def test_what_is_drawn_on_a_board_is_what_it_is_called() -> None:
    white = np.full((64, 64), 255, np.uint8)
    trace = white.copy()
    trace[28:36] = 0
    for rows, columns, value, kind in (
        (slice(26, 38), slice(30, 34), 255, "open"),
        (slice(28, 32), slice(30, 38), 255, "mousebite"),
        (slice(30, 34), slice(28, 36), 255, "pinhole"),
        (slice(20, 30), slice(30, 34), 0, "spur"),
        (slice(10, 16), slice(30, 40), 0, "copper"),
    ):
        marked = trace.copy()
        marked[rows, columns] = value
        assert boards.kind_of(trace, marked) == kind
    two = trace.copy()
    two[50:58] = 0
    bridged = two.copy()
    bridged[36:50, 30:34] = 0
    assert boards.kind_of(two, bridged) == "short"


@needs_data
def test_a_starter_is_rebuilt_from_the_data_with_the_same_answers(tmp_path: Path) -> None:
    name = "lingnan/steel-faults-linear"
    assert build.build(SHARED, tmp_path, [name]) == 0
    (zip_path,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(zip_path) as made, zipfile.ZipFile(SHELF / zip_path.name) as shipped:
        fresh, old = (json.loads(archive.read("manifest.json")) for archive in (made, shipped))
    assert fresh["metrics"] == old["metrics"]
    assert fresh["data"] == old["data"]


def test_measuring_uses_the_bundles_own_processing(shelf: dict[str, Bundle]) -> None:
    bundle = shelf["dongzhi/work-order-characters"]
    (answer,) = measure.answers(bundle, [{"text": "replace leaking hydraulic hose"}])
    assert answer["label"] == "Hydraulic System"
