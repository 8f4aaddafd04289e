"""The MLflow server as our child: MLflow's own ASGI application behind a guard that wants a private token.

Started as `python -m marketplace.tracking.child` by `supervisor`, with everything in the environment. This is the one
process that loads mlflow, and it does so by name: no module of the market imports it.
"""

from __future__ import annotations

import ctypes
import hmac
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.importer import import_from_string

TOKEN_HEADER = b"x-algomart-registry-token"
PR_SET_PDEATHSIG = 1


def guarded(app: Any, token: bytes) -> Any:
    """`app` for those who send the token; everybody else gets a bare 401."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == TOKEN_HEADER), b"")
            if not hmac.compare_digest(given, token):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return guard


def main() -> None:
    """Die with the parent, set SQLite to WAL (create 20 → 3 ms), serve until told to stop."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ.pop("ALGOMART_REGISTRY_PARENT")):  # gone before the signal was asked for
        sys.exit("the market that started this is gone")
    token = os.environ.pop("ALGOMART_REGISTRY_TOKEN").encode()
    backend = os.environ["_MLFLOW_SERVER_FILE_STORE"]
    if backend.startswith("sqlite:///"):
        path = Path(backend.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    app = guarded(import_from_string("mlflow.server.fastapi_app:app"), token)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["ALGOMART_REGISTRY_PORT"]), log_level="warning",
                access_log=False, lifespan="on")  # fmt: skip


if __name__ == "__main__":
    main()
