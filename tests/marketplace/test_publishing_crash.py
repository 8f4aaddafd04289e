"""kill -9 between every two steps of a publishing: at the next start it is either whole or gone, never half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from ulid import ULID

from marketplace.catalogue.documents import load_documents
from marketplace.catalogue.publishing import publish, reconcile
from marketplace.catalogue.search import SearchIndex
from marketplace.catalogue.source import CatalogueSource
from marketplace.catalogue.tables import Listing, ModelVersion, Publication
from marketplace.db import create_tables, open_database, reading, transaction
from marketplace.market import Market
from marketplace.nodes.registry import NodeRegistry
from marketplace.settings import Settings
from model_store.blobs import FolderBlobs
from model_store.mlflow_store import MlflowStore
from serving.ports import Principal
from tests.marketplace.linear_models import linear_bundle
from tests.marketplace.shelf import add_organisation
from tests.registry import running_child

REPORT = {"passed": True, "private": False, "findings": [], "scorecard": {}}
BEFORE_VISIBLE = ("started", "blob kept", "blob", "unpacked", "files linked", "version made", "registered")
AFTER_VISIBLE = ("visible", "confirmed", "done")


def open_market(home: Path) -> Market:
    """A market on this folder and on the shared MLflow; also what the process that gets killed opens."""
    url, token, artifacts = os.environ["TEST_MLFLOW"].split(" ")
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    market = Market(
        settings=Settings(home=home, demo=False),
        engine=engine,
        blobs=FolderBlobs(home / "blobs"),
        store=MlflowStore(url, {"X-AlgoMart-Registry-Token": token}, Path(artifacts)),
        bundles=CatalogueSource(engine, lambda version: home / "bundles" / version.digest),
        search=SearchIndex(load_documents),
        nodes=NodeRegistry(engine),
    )
    market.catalogue_changed()
    return market


def publish_and_die(home: Path, bundle: Path, organisation: str, step: str) -> None:
    """The process under test: publishes, and kills itself right after `step`."""
    market = open_market(home)

    def at(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    if step == "files linked":
        upload = MlflowStore._upload

        def upload_and_die(self: MlflowStore, *given: Any) -> None:
            upload(self, *given)
            at(step)

        MlflowStore._upload = upload_and_die  # type: ignore[method-assign]
    publish(market, bundle, organisation_id=organisation, published_by="m", private=False, report=REPORT, on_step=at)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    child = running_child("crash")
    token = child.headers["X-AlgoMart-Registry-Token"]
    monkeypatch.setenv("TEST_MLFLOW", f"{child.base_url} {token} {child.artifact_folder}")
    return tmp_path


@pytest.mark.parametrize("step", [*BEFORE_VISIBLE, *AFTER_VISIBLE])
def test_a_publishing_that_is_killed_is_whole_or_gone_at_the_next_start(home: Path, step: str) -> None:
    slug = str(ULID()).lower()
    engine = open_database(f"sqlite:///{home / 'market.db'}")
    create_tables(engine)
    with transaction(engine) as session:
        add_organisation(session, slug)
    engine.dispose()
    bundle = linear_bundle(home / "made", f"{slug}/linear")
    artifacts = running_child("crash").artifact_folder
    before = set(artifacts.rglob("model.onnx"))

    command = [sys.executable, "-m", "tests.marketplace.test_publishing_crash", str(home), str(bundle.path), slug, step]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert died.returncode == -signal.SIGKILL, died.stderr

    market = open_market(home)
    whole = step in AFTER_VISIBLE
    if step == "done":
        assert reconcile(market) == {"finished": 0, "removed": 0}
    else:
        assert reconcile(market) == {"finished": int(whole), "removed": int(not whole)}
    assert reconcile(market) == {"finished": 0, "removed": 0}
    stored = market.store.versions(f"{slug}/linear")
    with reading(market.engine) as session:
        rows = list(session.exec(select(ModelVersion)))
        listings = list(session.exec(select(Listing)))
        steps = [row.step for row in session.exec(select(Publication))]
    assert [(version.number, version.pending) for version in stored] == ([(1, False)] if whole else [])
    assert len(rows) == len(listings) == len(list(market.blobs.hashes())) == int(whole)
    assert len(set(artifacts.rglob("model.onnx")) - before) == int(whole)
    assert steps == ["done" if whole else "failed"]

    again = publish(market, bundle.path, organisation_id=f"org_{slug}", published_by="m", private=False, report=REPORT)
    assert again.already == whole
    served = market.bundles.resolve(f"{slug}/linear", None, Principal("k", f"org_{slug}", "vendor", frozenset({"use"})))
    assert (served.version, (served.bundle / "model.onnx").is_file()) == (again.version, True)


def test_a_registry_that_lost_a_visible_version_does_not_keep_the_market_from_starting(home: Path) -> None:
    slug = str(ULID()).lower()
    create_tables(open_database(f"sqlite:///{home / 'market.db'}"))
    market = open_market(home)
    with transaction(market.engine) as session:
        add_organisation(session, slug)
        row = Publication(
            id=f"pub_{slug}",
            organisation_id=f"org_{slug}",
            name=f"{slug}/gone",
            digest="0" * 64,
            step="visible",
            registry_version=1,
        )
        session.add(row)
    assert reconcile(market) == {"finished": 1, "removed": 0}


if __name__ == "__main__":
    publish_and_die(Path(sys.argv[1]), Path(sys.argv[2]), f"org_{sys.argv[3]}", sys.argv[4])
