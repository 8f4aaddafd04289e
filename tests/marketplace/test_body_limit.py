"""Every body of the JSON API and of the pages has a bound, whoever sends it."""

from __future__ import annotations

import pytest

from marketplace.body_limit import FORM_BYTES, SMALL_BYTES, limit_of

FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("path", "kind", "limit"),
    [
        ("/api/v1/keys", "application/json", SMALL_BYTES),
        ("/api/v1/keys", FORM, SMALL_BYTES),
        ("/api/v1/publish", FORM, None),
        ("/api/v1/inspect", FORM, None),
        ("/mlflow/api/2.0/mlflow-artifacts/artifacts/x", "", None),
        ("/login", "application/x-www-form-urlencoded", SMALL_BYTES),
        ("/login", FORM, SMALL_BYTES),
        ("/choose", FORM, FORM_BYTES),
        ("/choose", "", SMALL_BYTES),
    ],
)
def test_only_forms_with_files_may_be_large(path: str, kind: str, limit: int | None) -> None:
    assert limit_of(path, kind) == limit
