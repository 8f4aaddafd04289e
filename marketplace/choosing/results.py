"""From trials to what the factory reads: metric with intervals, latency, price after voucher, warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlmodel import Session

from marketplace.catalogue.tables import Listing
from marketplace.choosing.candidates import Candidate, as_label, label_names
from marketplace.choosing.ranking import Kind, Ranking, Standing, agreement, metric_of, rank, scorer
from marketplace.choosing.trial import Trial
from marketplace.clock import now_ms
from marketplace.vouchers.quote import quote_calls
from model_store.fingerprint import read_rows, row_hashes
from model_store.manifest import FeatureReference, Manifest

UNKNOWN = "(other)"
Tried = dict[str, tuple[Candidate, Trial]]


def key_of(candidate: Candidate) -> str:
    return f"{candidate.served.name}@{candidate.served.version}"


def kind_of(manifest: Manifest) -> Kind:
    if manifest.target is not None and manifest.target.kind == "number":
        return "regression"
    return "anomaly" if manifest.task == "anomaly-detection" else "classification"


def rank_labelled(tried: Tried, truth: Sequence[Any]) -> list[Ranking]:
    """One ranking for each kind of target among the candidates, on the rows that carry a label."""
    rankings = []
    labelled = np.array([place for place, cell in enumerate(truth) if cell is not None])
    kinds: tuple[Kind, ...] = ("classification", "anomaly", "regression")
    for kind in kinds:
        group = {key: pair for key, pair in tried.items() if kind_of(pair[0].manifest) == kind}
        if not group:
            continue
        first = next(iter(group.values()))[0].manifest
        # One metric for all: another vocabulary never says the first one's positive class, and F1 would read 1.
        spoken = {tuple(sorted(label.name for label in pair[0].manifest.labels)) for pair in group.values()}
        meant = {pair[0].manifest.target.positive if pair[0].manifest.target else None for pair in group.values()}
        positive = next(iter(meant)) if len(spoken) == len(meant) == 1 else None
        metric, higher = metric_of(kind, [label.name for label in first.labels], positive)
        scores = {}
        for key, (candidate, trial) in group.items():
            actual, predicted = _pair(candidate.manifest, trial, truth, labelled)
            scores[key] = scorer(metric, actual, predicted, positive)
        rankings.append(rank(metric, higher, scores, len(labelled)))
    return rankings


def _pair(manifest: Manifest, trial: Trial, truth: Sequence[Any], at: Any) -> tuple[Any, Any]:
    """(actual, predicted) of one candidate on the labelled rows; labels it does not know count as wrong."""
    kind = kind_of(manifest)
    answers = [trial.answers[place] for place in at]
    cells = [truth[place] for place in at]
    if kind == "regression":
        return np.array([float(cell) for cell in cells]), np.array([float(answer["value"]) for answer in answers])
    names = label_names(manifest.labels)
    actual = np.array([as_label(cell, names) or UNKNOWN for cell in cells])
    if kind == "anomaly":
        positive = (manifest.target.positive if manifest.target else None) or "anomaly"
        return actual == positive, np.array([float(answer["anomaly_score"]) for answer in answers])
    return actual, np.array([str(answer["label"]) for answer in answers])


def candidate_view(
    session: Session, organisation_id: str, candidate: Candidate, trial: Trial, standing: Standing | None
) -> dict[str, Any]:
    """One row of the answer."""
    manifest = candidate.manifest
    listing = session.get_one(Listing, candidate.served.listing_id)
    view: dict[str, Any] = {
        "model": candidate.served.name,
        "version": candidate.served.version,
        "title_zh": manifest.title_zh,
        "title_en": manifest.title_en,
        "method": manifest.method,
        "family": manifest.family,
        "task": manifest.task,
        "tier": manifest.tier,
        "matches": candidate.matches,
        "coverage": round(candidate.coverage, 4),
        "latency_ms": {name: round(value, 4) for name, value in trial.latency_ms.items()},
        "price": quote_calls(session, listing, organisation_id, 1000, now_ms()),
        "warnings": warnings_of(candidate),
    }
    if standing is not None:
        numbers = ("value", "low", "high", "behind_low", "behind_high")
        view |= {name: _finite(getattr(standing, name)) for name in numbers}
        view["tied_with_best"] = standing.tied
    return view


def warnings_of(candidate: Candidate) -> list[dict[str, Any]]:
    """What makes the metric worth less: samples that were trained on, values the model never saw."""
    found = []
    trained = read_rows(candidate.served.bundle)
    if trained is not None and len(trained):
        hashes = row_hashes(candidate.rows, candidate.manifest.features)
        places = np.searchsorted(trained, hashes).clip(max=len(trained) - 1)
        seen = int((trained[places] == hashes).sum())
        if seen:
            found.append(
                {
                    "code": "SAMPLES_TRAINED_ON",
                    "rows": seen,
                    "zh": f"{seen} 条样本出现在该模型的训练数据中, 其指标偏乐观",
                    "en": f"{seen} of the samples are in this model's training data: its metric is too good to be true",
                }
            )
    outside = [name for name, far in reference_distance(candidate).items() if far["outside"] > 0.2]
    if outside:
        found.append(
            {
                "code": "SAMPLES_OUTSIDE_RANGE",
                "features": outside[:10],
                "zh": f"这些特征有两成以上的样本超出训练范围: {', '.join(outside[:5])}",
                "en": f"more than a fifth of the samples lie outside the trained range of: {', '.join(outside[:5])}",
            }
        )
    return found


def reference_distance(candidate: Candidate) -> dict[str, dict[str, float]]:
    """Per numeric feature: `outside`, the share beyond the trained minimum and maximum, and `shift`, the
    distance of the means in trained standard deviations."""
    found = {}
    for name, reference in candidate.manifest.reference.items():
        values = _numbers(candidate, name, reference)
        if values is None or reference.minimum is None or reference.maximum is None:
            continue
        outside = float(((values < reference.minimum) | (values > reference.maximum)).mean())
        shift = abs(float(values.mean()) - (reference.mean or 0.0)) / reference.std if reference.std else 0.0
        found[name] = {"outside": outside, "shift": shift}
    return found


def _numbers(candidate: Candidate, name: str, reference: FeatureReference) -> Any:
    if reference.kind != "number":
        return None
    cells = []
    for row in candidate.rows:
        try:
            cells.append(float(row[name]))
        except (KeyError, TypeError, ValueError):
            continue
    return np.array(cells) if cells else None


def describe_unlabelled(tried: Tried) -> dict[str, dict[str, Any]]:
    """Coverage, distance and agreement per candidate; never an accuracy."""
    views: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for key, (candidate, trial) in tried.items():
        distance = reference_distance(candidate)
        views[key] = {
            "coverage": round(candidate.coverage, 4),
            "outside_share": _mean([far["outside"] for far in distance.values()]),
            "mean_shift": _mean([far["shift"] for far in distance.values()]),
        }
        kind = kind_of(candidate.manifest)
        answer = {"regression": "value", "anomaly": "anomaly_score", "classification": "label"}[kind]
        target = candidate.manifest.target.name if candidate.manifest.target else ""
        groups.setdefault((kind, target), {})[key] = np.array([row[answer] for row in trial.answers])
    for (group, _), predictions in groups.items():
        for key, share in agreement(predictions, numeric=group != "classification").items():
            views[key]["agreement"] = round(share, 4)
    return views


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
