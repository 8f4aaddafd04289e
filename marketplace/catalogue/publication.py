"""The journal of a publishing: one `publication` row, moved forward after each step is done.

    started → blob → registered → visible → done            failed: undone, nothing of it is left

`reconcile` settles at start what a crash left between two steps: what is visible is finished, everything else removed.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select

from marketplace.catalogue.tables import ModelVersion, Publication
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.ids import new_id
from marketplace.kept_blobs import kept_blobs
from model_store.bundle import Bundle
from model_store.errors import Refusal

if TYPE_CHECKING:
    from marketplace.market import Market

OPEN_STEPS = ("started", "blob", "registered", "visible")
STARTED_S = time.time()  # of this process: what lies in tmp since before it is nobody's
LEFT_BEHIND_S = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def open_publication(market: Market, organisation_id: str, bundle: Bundle) -> str:
    """A new row at `started`; its id."""
    row = Publication(
        id=new_id("pub"),
        organisation_id=organisation_id,
        name=bundle.manifest.name,
        digest=bundle.digest,
        step="started",
    )
    with transaction(market.engine) as session:
        session.add(row)
    return row.id


def advance(market: Market, publication: str, step: str, *, blob: str = "", number: int | None = None) -> None:
    """Write that a step is done, in a transaction of its own."""
    with transaction(market.engine) as session:
        mark(session, publication, step, blob=blob, number=number)


def mark(session: Session, publication: str, step: str, *, blob: str = "", number: int | None = None) -> None:
    """Write that a step is done, within the caller's transaction."""
    row = session.get_one(Publication, publication)
    row.step, row.updated_at_ms = step, now_ms()
    if blob:
        row.details = {**row.details, "blob": blob}
    if number is not None:
        row.registry_version = number
    session.add(row)


def undo(market: Market, publication: str) -> None:
    """Take back a publication that is not visible: registry first, then its blob where no version names it."""
    market.store.discard(publication)
    with transaction(market.engine) as session:
        row = session.get_one(Publication, publication)
        mark(session, publication, "failed")
        blob = str(row.details.get("blob", ""))
        named = session.exec(select(ModelVersion.id).where(ModelVersion.blob == blob)).first()
    if blob and named is None:
        market.blobs.delete(blob)


def reconcile(market: Market) -> dict[str, int]:
    """Finish or remove what a crash left half-published; `{"finished", "removed"}`. Run before anything is published.

    A visible version is confirmed in the registry. What is not visible is removed there, its row marked failed. Then
    blobs that no version names are deleted, half uploads, and bundles that lay about unpacked (or mapped) for an hour.
    """
    finished = removed = 0
    with reading(market.engine) as session:
        rows = list(session.exec(select(Publication).where(col(Publication.step).in_(OPEN_STEPS))))
    for row in rows:
        if row.step == "visible" and row.registry_version is not None:
            _confirm(market, row.name, row.registry_version)
            advance(market, row.id, "done")
            finished += 1
        else:
            undo(market, row.id)
            removed += 1
    for stored in market.store.pending():  # of a registry that is ahead of this database: restored from a backup, say
        with reading(market.engine) as session:
            publication = session.get(Publication, stored.publication)
        if publication is not None and publication.step == "done":
            market.store.confirm(stored.name, stored.number)
        else:
            market.store.remove(stored.name, stored.number)
            removed += 1
    _sweep(market)
    return {"finished": finished, "removed": removed}


def _confirm(market: Market, name: str, number: int) -> None:
    """A registry that has lost the version (another database, a restore) must not keep the market from starting."""
    try:
        market.store.confirm(name, number)
    except Refusal as refusal:
        if refusal.status != 404:
            raise
        _log.warning("%s@%d is visible, but the registry does not have it", name, number)


def _sweep(market: Market) -> None:
    home = market.settings.home
    if half_written := market.blobs.sweep(market.opened_s):
        _log.info("%d half-written blobs removed", half_written)
    hashes = list(market.blobs.hashes())
    with reading(market.engine) as session:
        blobs = kept_blobs(session)
        digests = set(session.exec(select(ModelVersion.digest)))
    for sha256 in hashes:
        # The market answers already: a file that came in since it was opened may be named in a moment.
        if sha256 not in blobs and market.blobs.path(sha256).stat().st_mtime < market.opened_s:
            _log.info("removing blob %s, which nothing names", sha256)
            market.blobs.delete(sha256)
    bundles, scratch = home / "bundles", home / "tmp"
    of_bundles = (bundles, market.settings.mapped_folder)
    left = [each for folder in of_bundles for each in _children(folder) if each.name not in digests]
    for path in left + _children(scratch):
        if path.parent in of_bundles and not (path.name.startswith(".") or _DIGEST.fullmatch(path.name)):
            continue
        oldest = STARTED_S if path.parent == scratch else time.time() - LEFT_BEHIND_S
        if path.lstat().st_ctime > oldest:
            continue  # of somebody who is at work beside this start
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
