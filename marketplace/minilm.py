"""The MiniLM text base on the shelf: built once, in the background, when the workshop's packages are there.

It is too large to ship and needs torch to be made, so the first start of a demonstration market has it exported by a
child process of low priority and publishes the result like any other starter. Nothing waits for it, and a market that
is stopped meanwhile begins again at its next start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from sqlmodel import select

from adapters.workshop import missing_packages
from marketplace.catalogue.tables import Listing
from marketplace.db import reading
from marketplace.demo_voucher import seed_voucher
from marketplace.market import Market
from marketplace.starter import seed_shelf

NAME = "pearl/minilm-l6"
COMMAND = ("-m", "adapters.recipes.shelf.minilm", "--limited", "--out")
LOOK_EVERY_S = 15.0
LONGEST_S = 900.0
_log = logging.getLogger("algomart.minilm")


class MiniLmBuild:
    """One thread: wait for the workshop, build, publish, end. `stop` ends it at any point."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._folder = market.settings.home.resolve() / "starter-extra"
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # a child is either not started any more, or known to `stop`
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="minilm", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new child, and the end of the one that runs; a publication under way is finished first."""
        with self._starting:
            self._stopping.set()
            process = self._process
        if process is not None:
            _kill(process)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            if self._is_on_shelf() or not self._await_workshop():
                return
            if not (self._folder / "starter.yaml").exists() and not self._build():  # written last: all is there
                return
            self._market.await_registry(LONGEST_S)
            if self._stopping.is_set():
                return
            seed_shelf(self._market, self._folder)
            if self._is_on_shelf():
                seed_voucher(self._market.engine)  # the demonstration factory takes it as it took the others
                shutil.rmtree(self._folder, ignore_errors=True)
                _log.info("%s is on the shelf", NAME)
        except Exception:
            _log.exception("%s could not be added; the next start tries again", NAME)

    def _is_on_shelf(self) -> bool:
        with reading(self._market.engine) as session:
            return session.exec(select(Listing.id).where(Listing.name == NAME)).first() is not None

    def _await_workshop(self) -> bool:
        """True once everything is installed, False when the market stops before."""
        if missing_packages():
            _log.info("%s follows when the workshop is installed (missing: %s)", NAME, ", ".join(missing_packages()))
        while missing_packages():
            if self._stopping.wait(LOOK_EVERY_S):
                return False
        return not self._stopping.is_set()

    def _build(self) -> bool:
        """Run the child; True where it made a bundle that passed inspection. Its words are in logs/minilm.log."""
        home = self._market.settings.home.resolve()
        scratch = home / "tmp" / "minilm"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _log.info("building %s in the background", NAME)
        try:
            with (home / "logs" / "minilm.log").open("wb") as log:
                with self._starting:
                    if self._stopping.is_set():
                        return False
                    process = self._process = subprocess.Popen(
                        [sys.executable, *COMMAND, str(self._folder)],
                        # The child ends itself when this pipe closes, that is, when the market dies.
                        stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=scratch, env=_environment(scratch),
                        start_new_session=True,
                    )  # fmt: skip
                try:
                    status = process.wait(LONGEST_S)
                except subprocess.TimeoutExpired:
                    _kill(process)
                    status = process.wait()
            if status and not self._stopping.is_set():
                _log.error("building %s ended with status %d; see %s", NAME, status, home / "logs" / "minilm.log")
            return status == 0
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:  # reaped: the number may be another's by now
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(scratch: Path) -> dict[str, str]:
    """No keys or settings of the market, no downloads, one thread: calls go first."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH") if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH", "")))),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
