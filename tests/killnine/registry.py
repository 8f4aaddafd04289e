"""A registry that is not killed: MLflow as a city runs it, a server of its own beside the market.

The market then starts in a third of the time, so that hundreds of kills fit in an hour. What is killed (the process
behind the port, ingest, limited workers) and what must hold are the same.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from marketplace.settings import Settings
from marketplace.tracking.supervisor import MlflowChild


class OutsideRegistry(MlflowChild):
    """As the market's own child, without the guard that wants the market's token. `database`: where it keeps what."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(Settings(home=folder))
        self.database = folder / "mlflow.db"

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--host", "127.0.0.1"]
        with (self.database.parent / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), "--log-level", "warning"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), cwd=self.database.parent,
            )  # fmt: skip
        return self._process
