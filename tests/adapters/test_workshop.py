"""Whether the workshop is installed, told without importing any of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adapters import workshop
from adapters.jobs import error_from
from model_store.errors import Unavailable


def test_an_installed_workshop_is_ready_and_nothing_of_it_is_imported() -> None:
    look = (
        "import sys; from adapters.workshop import missing_packages, PACKAGES; print(missing_packages(), "
        "[name for name in PACKAGES if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_a_missing_package_is_refused_by_name_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workshop.PACKAGES, "no_such_module", "no-such-distribution")
    assert workshop.missing_packages() == ["no-such-distribution"]
    with pytest.raises(Unavailable, match="WORKSHOP_NOT_READY") as caught:
        workshop.check_ready()
    refusal = caught.value
    assert "no-such-distribution" in refusal.zh
    assert "no-such-distribution" in refusal.en
    assert "make setup" in refusal.remedy_zh
    assert "make setup" in refusal.remedy_en
    assert refusal.retry_after_s


def test_a_job_that_cannot_import_the_workshop_says_so() -> None:
    assert error_from(ModuleNotFoundError("no torch", name="torch.nn"))["code"] == "WORKSHOP_NOT_READY"
    assert error_from(ModuleNotFoundError("no other", name="other"))["code"] == "JOB_FAILED"
