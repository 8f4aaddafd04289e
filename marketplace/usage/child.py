"""Ingest as a process of its own: tails the journals until it is told to end, then ingests the rest and leaves.

Started as `python -m marketplace.usage.child` by `supervisor`, with everything in the environment. It holds its own
connection to the database, and gives way to the process that answers calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time

import msgspec

from marketplace.db import open_database
from marketplace.settings import Settings
from marketplace.usage.ingest import Ingest, Progress
from serving.parent import die_with_parent

NICENESS = 5  # calls first: what is not posted in this second is posted in the next
HEARTBEAT_S = 1.0
NEWS_S = 0.2


class Heartbeat:
    """Progress as a line on standard output: once a second, and sooner where something was posted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._told_at = 0.0
        self._batches = 0
        os.set_blocking(descriptor, False)

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._told_at >= (NEWS_S if progress.batches != self._batches else HEARTBEAT_S):
            self.tell(progress)

    def tell(self, progress: Progress) -> None:
        self._told_at, self._batches = time.monotonic(), progress.batches
        shown = msgspec.structs.replace(progress, last_error=progress.last_error[:500])
        with contextlib.suppress(BlockingIOError):  # nobody reads just now: the next line says it again
            os.write(self._descriptor, msgspec.json.encode(shown) + b"\n")


def main() -> None:
    die_with_parent(int(os.environ["ALGOMART_INGEST_PARENT"]))
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the market ends this, once all is written
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    settings = Settings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    engine = open_database(settings.sql_url)
    heartbeat = Heartbeat(sys.stdout.fileno())
    ingest = Ingest(engine, settings.home / "journal", told=heartbeat)
    ingest.start()
    os.read(sys.stdin.fileno(), 1)  # the market says so, or is gone
    ingest.stop()
    ingest.flush()
    heartbeat.tell(ingest.progress)
    engine.dispose()


if __name__ == "__main__":
    main()
