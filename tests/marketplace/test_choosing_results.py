"""What a factory reads of its trials: one metric for all candidates, fair to every vocabulary."""

from __future__ import annotations

import zipfile
from pathlib import Path

from marketplace.choosing.candidates import Candidate
from marketplace.choosing.results import kind_of, rank_labelled
from marketplace.choosing.trial import Trial
from model_store.manifest import Manifest
from serving.ports import ServedVersion

STARTER = Path(__file__).parents[2] / "marketplace" / "catalogue" / "starter"


def two_class() -> Manifest:
    """A starter classifier of two classes, one of them the positive one."""
    for path in sorted(STARTER.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            manifest = Manifest.model_validate_json(archive.read("manifest.json"))
        positive = manifest.target is not None and manifest.target.positive is not None
        if positive and len(manifest.labels) == 2 and kind_of(manifest) == "classification":
            return manifest
    raise AssertionError("the shelf has no classifier of two classes")


def candidate(name: str, manifest: Manifest) -> Candidate:
    return Candidate(ServedVersion(name, name, name, 1, Path(), "", True, "org"), manifest, [])


def test_a_model_with_another_vocabulary_that_is_always_wrong_does_not_win() -> None:
    """Its labels are other words for the same two classes; F1 of the first one's positive class would read 1."""
    mine = two_class()
    words = {label.name: f"other-{label.name}" for label in mine.labels}
    labels = [
        label.model_copy(update={"name": words[label.name], "aliases": [*label.aliases, label.name]})
        for label in mine.labels
    ]
    assert mine.target is not None
    target = mine.target.model_copy(update={"positive": words[str(mine.target.positive)]})
    other = mine.model_copy(update={"labels": labels, "target": target})
    one, two = (label.name for label in mine.labels)
    truth = [one, two] * 20
    right = Trial([{"label": cell} for cell in truth])
    wrong = Trial([{"label": words[two if cell == one else one]} for cell in truth])
    tried = {"a/right@1": (candidate("a/right", mine), right), "b/wrong@1": (candidate("b/wrong", other), wrong)}
    (ranking,) = rank_labelled(tried, truth)
    assert ranking.metric == "macro_f1"
    assert [(row.key, row.value) for row in ranking.standings] == [("a/right@1", 1.0), ("b/wrong@1", 0.0)]
    assert ranking.clear_winner


def test_models_that_speak_alike_are_measured_on_the_positive_class() -> None:
    mine = two_class()
    truth = [label.name for label in mine.labels] * 20
    tried = {"a/m@1": (candidate("a/m", mine), Trial([{"label": cell} for cell in truth]))}
    (ranking,) = rank_labelled(tried, truth)
    assert ranking.metric == "f1"
