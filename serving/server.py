"""uvicorn, set up for a serving node: uvloop, the hot-path protocol, no access log, a graceful end."""

from __future__ import annotations

import gc
import socket
import sys

import uvicorn

from serving.app import ServingApp
from serving.http_protocol import fast_protocol

GRACE_S = 15
KEEP_ALIVE_S = 75  # longer than what proxies keep idle connections, so that they close first
BACKLOG = 2048
# A thread that computes in Python gives the interpreter back to the event loop after this long (Python: 5 ms).
SWITCH_INTERVAL_S = 0.0005
GARBAGE_THRESHOLDS = (10_000, 20, 50)


class NodeServer(uvicorn.Server):
    """uvicorn's server with an interpreter set up for an event loop that must answer within milliseconds."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Once everything is loaded, take it out of garbage collection: a full pass over it would stall the loop."""
        await super().startup(sockets)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)


def server_of(
    app: ServingApp,
    host: str,
    port: int,
    *,
    log_level: str = "info",
    fast: bool = True,
    file_descriptor: int | None = None,
) -> uvicorn.Server:
    """A server that is not running yet: `await server.serve()`, or `server.run()` in the main thread.

    `fast=False` takes uvicorn's plain protocol (to compare). `file_descriptor`: an already listening socket.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        fd=file_descriptor,
        loop="uvloop",
        http=fast_protocol(app) if fast else "httptools",
        ws="none",
        interface="asgi3",
        lifespan="on",
        access_log=False,
        log_level=log_level,
        server_header=False,
        proxy_headers=False,  # /metrics judges loopback by the socket
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return NodeServer(config)


def serve(app: ServingApp, host: str = "127.0.0.1", port: int = 8000, *, log_level: str = "info") -> None:
    """Serve until SIGINT or SIGTERM: then no new calls, what runs is finished, the journal is sealed."""
    server_of(app, host, port, log_level=log_level).run()
