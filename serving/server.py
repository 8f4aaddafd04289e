"""uvicorn, set up for a serving node: uvloop, the hot-path protocol, no access log, a graceful end."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading

import uvicorn

from serving.app import ServingApp
from serving.asgi import Companion
from serving.connections import SlowClients
from serving.errors.node import grpc_not_installed, port_in_use
from serving.http_protocol import fast_protocol

GRACE_S = 15
LOOK_TICKS = 10  # of uvicorn's, ten a second
KEEP_ALIVE_S = 75  # longer than what proxies keep idle connections, so that they close first
BACKLOG = 2048
# A thread that computes in Python gives the interpreter back to the event loop after this long (Python: 5 ms).
SWITCH_INTERVAL_S = 0.0005
GARBAGE_THRESHOLDS = (10_000, 20, 50)


class NodeServer(uvicorn.Server):
    """uvicorn's server with an interpreter set up for an event loop that must answer within milliseconds.

    It closes clients that hold a connection for ever, and says that it is not ready before it stops accepting.
    """

    def __init__(self, config: uvicorn.Config, app: ServingApp, *, fast: bool) -> None:
        super().__init__(config)
        self._serving = app
        settings = app.dataplane.settings
        self.slow_clients = SlowClients(settings.receive_timeout_s, settings.send_timeout_s) if fast else None

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self.slow_clients is not None and counter % LOOK_TICKS == 0:
            self.slow_clients.look(self.server_state.connections)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Not ready; after `drain_s`, in which calls are still taken, nobody is accepted, and what is in hand ends."""
        self._serving.stopping = True
        await asyncio.sleep(self._serving.dataplane.settings.drain_s)
        if self._serving.siblings is not None:
            await self._serving.siblings.before_stop()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Once everything is loaded, take it out of garbage collection: a full pass over it would stall the loop, the
        first one too (50 ms of a node with 10,000 models, 220 of a market, for a few hundred objects)."""
        await super().startup(sockets)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.freeze()
        gc.enable()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        threading.Thread(target=_import_what_loading_needs, name="imports", daemon=True).start()


def _import_what_loading_needs() -> None:
    """What a first model is loaded with, but nothing that being ready needs: it takes a twentieth of a second."""
    import onnx  # noqa: F401

    gc.freeze()


def server_of(
    app: ServingApp,
    host: str,
    port: int,
    *,
    log_level: str = "info",
    fast: bool = True,
    file_descriptor: int | None = None,
) -> NodeServer:
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
    return NodeServer(config, app, fast=fast)


def serve(
    app: ServingApp,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grpc_port: int = 0,
    log_level: str = "info",
    sockets: list[socket.socket] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM: then no new calls, what runs is finished, the journal is sealed.

    `grpc_port`: where gRPC answers beside HTTP; 0: nowhere. `sockets`: bound ones, in the place of `host` and `port`.
    Raises `NotHere` GRPC_NOT_INSTALLED.
    """
    if grpc_port:
        app.companion = _grpc_server(app, host, grpc_port, shared=app.siblings is not None)
    server_of(app, host, port, log_level=log_level).run(sockets)


def _grpc_server(app: ServingApp, host: str, port: int, *, shared: bool) -> Companion:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else every caller's mistake is a line in the log
    try:
        from serving.grpc_server import GrpcServer  # only here: HTTP alone needs nothing of gRPC
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("grpc", "google")):
            raise
        raise grpc_not_installed(error.name or "grpc") from error
    return GrpcServer(app, host, port, shared=shared)


def shared_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address that other processes bind too: the kernel deals the connections out among them."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def check_port(host: str, port: int, setting: str) -> None:
    """Raises `Conflict` PORT_IN_USE now, not after everything has been put together; `setting` names the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise port_in_use(host, port, setting, error.strerror or str(error)) from error
