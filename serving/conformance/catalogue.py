"""All checks, in the order in which they run and are reported."""

from __future__ import annotations

from serving.conformance.areas import (
    datatypes,
    errors,
    generate,
    headers,
    health,
    infer_binary,
    infer_json,
    metadata,
    parameters,
    repository,
    robustness,
    shapes,
    statistics,
    versions,
)
from serving.conformance.checks import Area

AREAS: tuple[Area, ...] = (
    health.AREA,
    metadata.AREA,
    infer_json.AREA,
    infer_binary.AREA,
    errors.AREA,
    datatypes.AREA,
    shapes.AREA,
    parameters.AREA,
    versions.AREA,
    repository.AREA,
    statistics.AREA,
    generate.AREA,
    headers.AREA,
    robustness.AREA,
)
