"""Work for a client, as long as it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from serving.asgi import Send
from serving.bodies import Disconnected, Receive

T = TypeVar("T")


async def send_stream(send: Send, stream: AsyncIterator[bytes]) -> None:
    """A body in parts, to its end."""
    async for chunk in stream:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def while_connected(work: Awaitable[T], receive: Receive) -> T:
    """Await `work`, cancelling it when the client goes away. Raises `Disconnected` then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
