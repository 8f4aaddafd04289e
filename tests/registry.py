"""Real MLflow servers for all tests of a run: started on first use, stopped at the end."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from marketplace.settings import Settings
from marketplace.tracking.supervisor import MlflowChild


@functools.cache
def running_child(name: str = "shared") -> MlflowChild:
    """The child of that name, ready. Tests share it, so each takes model names of its own."""
    home = Path(tempfile.mkdtemp(prefix="algomart-mlflow-"))
    child = MlflowChild(Settings(home=home))
    child.start()
    atexit.register(lambda: (child.stop(), shutil.rmtree(home, ignore_errors=True)))
    child.wait_ready()
    return child
