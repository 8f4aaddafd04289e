"""Ingest in a process of its own: the one that answers calls shares its interpreter with nothing that posts them.

The child (`marketplace.usage.child`) tells its progress in lines on its standard output and ends when it is told to on
its standard input. Nothing is lost with it: where a journal was read up to stands in the transaction that charges, so
the next child goes on exactly there. What a child that is gone for good leaves, the end of the epoch ingests
(`recovery`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec

from marketplace.clock import now_ms
from marketplace.settings import Settings
from marketplace.usage.ingest import Progress

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 30.0
LONG_ENOUGH_S = 60.0  # a child that ran this long is not in a crash loop
SILENCE_S = 120.0  # a child that tells nothing for so long hangs; four times what it may wait for the database
DRAIN_S = 60.0
_log = logging.getLogger("algomart.ingest")
_decode = msgspec.json.Decoder(Progress)


class Tails(Protocol):
    """What a market knows of its ingest, wherever it runs: `Ingest` (a thread) or `IngestChild`."""

    @property
    def progress(self) -> Progress: ...


class IngestChild:
    """`start()` returns at once; `stop()` lets the child ingest all that is written, then ends it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._spawning = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._earlier = Progress()  # what children that have ended had counted
        self._latest = Progress()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id now; None before the first start."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def alive(self) -> bool:
        process = self._process
        return process is not None and process.poll() is None

    @property
    def progress(self) -> Progress:
        """As last told, counted over all children."""
        return _sum(self._earlier, self._latest)

    def start(self) -> None:
        """Start the thread that spawns the child, listens to it and starts it again when it ends.

        The kernel kills the child when that thread ends (Linux ties a parent's death to the thread), so it is the one
        that lives as long as the supervisor.
        """
        self._thread = threading.Thread(target=self._watch, name="ingest-supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have the rest ingested; a child that does not come to its end within a minute is killed (nothing is lost).
        Idempotent."""
        with self._spawning:
            self._stopping.set()
            process = self._process
        if process is not None:
            _tell_to_end(process)
            try:
                process.wait(DRAIN_S)
            except subprocess.TimeoutExpired:
                _log.warning("ingest did not come to its end within %.0f s and is killed", DRAIN_S)
                process.kill()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        backoff = FIRST_BACKOFF_S
        while True:
            with self._spawning:
                if self._stopping.is_set():
                    return
                process = self._spawn()
            started = time.monotonic()
            status: object = "no process to be had"
            if process is not None:
                self._listen(process)
                status = process.wait()
                _tell_to_end(process)  # it has: our end of the pipe goes too
                self._earlier, self._latest = _sum(self._earlier, self._latest), Progress()
            if self._stopping.is_set():
                return
            backoff = FIRST_BACKOFF_S if time.monotonic() - started > LONG_ENOUGH_S else min(backoff * 2, MAX_BACKOFF_S)
            _log.warning("ingest ended with %s; starting it again in %.1f s", status, backoff)
            self.restarts += 1
            if self._stopping.wait(backoff):
                return

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "marketplace.usage.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment(),
            )  # fmt: skip
        except OSError as error:  # no memory for one just now; usage waits in the journal
            _log.error("ingest cannot be started: %s", error)
            return None
        return self._process

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
        root = str(Path(__file__).resolve().parents[2])
        return kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")])),
            "ALGOMART_HOME": str(self._settings.home.resolve()),
            "ALGOMART_DATABASE_URL": self._settings.database_url,
            "ALGOMART_LOG_LEVEL": self._settings.log_level,
            "ALGOMART_INGEST_PARENT": str(os.getpid()),
        }

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take what the child tells until it ends; kill it where it has fallen silent."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        rest = b""
        with process.stdout:
            while True:
                ready, _, _ = select.select([descriptor], [], [], SILENCE_S)
                if not ready:
                    _log.error("ingest has said nothing for %.0f s and is killed", SILENCE_S)
                    process.kill()
                    return
                told = os.read(descriptor, 1 << 16)
                if not told:
                    return
                *lines, rest = (rest + told).split(b"\n")
                for line in lines:
                    with contextlib.suppress(msgspec.DecodeError):  # cut short by a full pipe; the next says it again
                        self._latest = _decode.decode(line)


def _tell_to_end(process: subprocess.Popen[bytes]) -> None:
    """A byte on its standard input; nothing where it has ended, or been told."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ValueError):
        process.stdin.write(b"e")
        process.stdin.close()


def _sum(before: Progress, latest: Progress) -> Progress:
    """Counts added up; positions and instants as known last."""
    return Progress(
        records=before.records + latest.records,
        duplicates=before.duplicates + latest.duplicates,
        quarantined=before.quarantined + latest.quarantined,
        postings=before.postings + latest.postings,
        batches=before.batches + latest.batches,
        last_occurred_ms=max(before.last_occurred_ms, latest.last_occurred_ms),
        caught_up_at_ms=max(before.caught_up_at_ms, latest.caught_up_at_ms),
        offsets=latest.offsets or before.offsets,
        problems=latest.problems,
        last_error=latest.last_error,
    )


def standing(ingest: Tails, journal_folder: Path) -> dict[str, Any]:
    """How far the ledger is behind the calls, for readiness and whoever runs the market."""
    progress = ingest.progress
    found: dict[str, Any] = {
        "lag_ms": progress.lag_ms(journal_folder, now_ms()),
        "behind_bytes": progress.behind_bytes(journal_folder),
        "records": progress.records,
        "quarantined": progress.quarantined,
        "problems": len(progress.problems),
    }
    if isinstance(ingest, IngestChild):
        found |= {"alive": ingest.alive, "restarts": ingest.restarts}
    return found


def gauges(ingest: Tails, journal_folder: Path) -> dict[str, float]:
    """The same, and what was posted, by metric name."""
    progress, now = ingest.progress, standing(ingest, journal_folder)
    found = {
        "algomart_ingest_lag_ms": now["lag_ms"],
        "algomart_ingest_behind_bytes": now["behind_bytes"],
        "algomart_ingest_journals_damaged": now["problems"],
        "algomart_ingest_records_total": progress.records,
        "algomart_ingest_duplicates_total": progress.duplicates,
        "algomart_ingest_quarantined_total": progress.quarantined,
        "algomart_ingest_postings_total": progress.postings,
        "algomart_ingest_batches_total": progress.batches,
    }
    if isinstance(ingest, IngestChild):
        found |= {"algomart_ingest_alive": float(ingest.alive), "algomart_ingest_restarts_total": ingest.restarts}
    return found
