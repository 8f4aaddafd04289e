"""What the application of a serving node is made of: ASGI's callables, and what it passes requests to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from serving.bodies import Message, Receive
from serving.messages import Request, Response

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
ASKED = "/siblings/"  # what processes behind one port ask each other
PASSED_RPC = "rpc"


class Skin(Protocol):
    async def answer(self, request: Request) -> Response: ...


class Companion(Protocol):
    """What answers over the same data plane on a port of its own (gRPC)."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def answer_passed(self, headers: Mapping[bytes, bytes], content: bytes) -> Response:
        """A call that another process has taken, and whose key of idempotency is this one's."""


class Siblings(Protocol):
    """Other processes that answer on the same port (`serving.siblings`)."""

    def way_of(self, scope: Scope) -> Asgi | None:
        """Who answers this request; None: this process."""

    def is_from_one(self, scope: Scope) -> bool:
        """Another of them asks this, for itself."""

    def is_elsewhere(self, key: bytes) -> bool:
        """This key of idempotency is another process's."""

    async def ask_owner(
        self, key: bytes, what: str, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask the process whose key of idempotency it is: status, headers and body. Raises `Unavailable`."""

    async def metrics(self, own: bytes) -> bytes:
        """Everybody's exposition in one, beginning with this process's `own`."""

    async def before_stop(self) -> None:
        """Awaited while this process still answers everything."""
