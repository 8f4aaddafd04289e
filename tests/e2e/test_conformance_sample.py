"""A seeded 60 of the 630 backend cases, published and called over HTTP on a market in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tests.conformance.__main__ import run_cases
from tests.conformance.cases import CASES, load_cases
from tests.live import LiveMarket

SAMPLE, SEED = 60, 20260


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/data/onnx_cases is not there")
def test_sixty_backend_cases_give_over_http_what_the_onnx_package_expects(
    live_market: LiveMarket, tmp_path: Path
) -> None:
    cases = load_cases(tmp_path, SAMPLE, SEED)
    results = run_cases(live_market.url, live_market.keys["vendor"], cases, Console(quiet=True))
    assert [(result.case.name, result.why) for result in results if result.outcome != "passed"] == []
    assert {way for result in results for way in result.ways} == {"json", "binary"}
