"""What is kept under its hash stays, however often the market starts again, and comes back from a backup."""

import os

import pytest
from sqlmodel import SQLModel

import marketplace.tables  # noqa: F401  every table
import serving.leases
from marketplace.catalogue.publication import reconcile
from marketplace.claims import batches
from marketplace.claims.tables import ClaimBatch
from marketplace.clock import policy_date
from marketplace.db import transaction
from marketplace.kept_blobs import COLUMNS
from model_store.blobs import FolderBlobs
from tests.marketplace.town import CHEN, Town

NOT_KEPT = {
    "node_epoch.sha256",  # of a sealed journal
    "journal_segment.sha256",  # of its bytes so far
    "ledger_check.sha256",  # of all balances
    "sample_set.sha256",  # kept for a day, in a folder of its own
    *(f"{table}.sha256" for table in ("api_key", "one_time_token", "web_session", "serving_node")),  # of a secret
}


@pytest.fixture
def town(market, tmp_path, monkeypatch):
    town = Town(market.engine, tmp_path / "journal")
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    return town


def test_a_frozen_claim_s_document_outlives_a_start(market, town):
    """A start swept every blob that no model version named, and with it what had been claimed."""
    town.voucher(1_000)
    town.subscribe()
    node = town.node()
    node.call(count=100)
    node.stop()
    today = policy_date(town.now).isoformat()
    with transaction(town.engine) as session:
        batch = batches.create(session, "town", today, today, member=CHEN)
        sha256 = batches.freeze(session, batch, market.blobs, member=CHEN, at_ms=town.now).sha256
    reconcile(market)
    assert market.blobs.has(sha256)
    assert town.get(ClaimBatch, batch.id).sha256 == sha256


def test_a_start_sweeps_leftovers_and_no_file_that_comes_in_beside_it(market, tmp_path):
    """The market answers while it settles what a crash left: an upload's row follows its content."""
    market.blobs = FolderBlobs(tmp_path / "blobs")
    for name in ("leftover", "again", "new"):
        (tmp_path / name).write_text(name)
    leftover, again, new = (market.blobs.put(tmp_path / name) for name in ("leftover", "again", "new"))
    for sha256 in (leftover, again):
        os.utime(market.blobs.path(sha256), (0, 0))
    market.blobs.put(tmp_path / "again")
    incoming = tmp_path / "blobs" / "incoming"
    for name in ("killed", "coming"):
        (incoming / f"{name}.partial").write_text("half")
    os.utime(incoming / "killed.partial", (0, 0))
    reconcile(market)
    assert [each.name for each in incoming.iterdir()] == ["coming.partial"]
    assert [market.blobs.has(sha256) for sha256 in (leftover, again, new)] == [False, True, True]


def test_every_column_that_holds_a_blob_s_hash_is_known_to_the_sweep():
    known = {f"{column.class_.__tablename__}.{column.key}" for column in COLUMNS}
    found = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if column.name in ("sha256", "blob")
    }
    assert found - NOT_KEPT == known
