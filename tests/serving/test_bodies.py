"""Bodies on their way in: bounded one by one, and large uploads together."""

from __future__ import annotations

import pytest

from model_store.errors import TooLarge, TooMany
from serving.bodies import Disconnected, Message, Receive, UploadRoom, read_body


def arriving(*parts: bytes, whole: bool = True) -> Receive:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if whole else {"type": "http.disconnect"})

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def test_a_body_is_read_in_the_parts_it_came_in() -> None:
    assert b"".join(await read_body(arriving(b"ab", b"c"), {}, 3)) == b"abc"


async def test_a_body_over_its_bound_or_cut_short_is_refused() -> None:
    with pytest.raises(TooLarge, match="BODY_TOO_LARGE"):
        await read_body(arriving(b"ab", b"cd"), {}, 3)
    with pytest.raises(TooLarge, match="BODY_TOO_LARGE"):
        await read_body(arriving(), {b"content-length": b"4"}, 3)
    with pytest.raises(Disconnected):
        await read_body(arriving(b"ab", whole=False), {}, 3)


async def test_uploads_that_together_are_too_large_are_refused_until_one_has_ended() -> None:
    room = UploadRoom(10)
    with room.place() as take:
        await read_body(arriving(b"123456"), {}, 100, take)
        with pytest.raises(TooMany, match="UPLOADS_FULL") as refused, room.place() as other:
            await read_body(arriving(b"12", b"345"), {}, 100, other)
        assert refused.value.retry_after_s
        assert refused.value.remedy_zh
        assert room.held == 6  # what the refused one had sent is given back
    assert room.held == 0
    with room.place() as take:
        await read_body(arriving(b"1234567890"), {}, 100, take)


async def test_a_client_that_leaves_gives_its_room_back() -> None:
    room = UploadRoom(10)
    with pytest.raises(Disconnected), room.place() as take:
        await read_body(arriving(b"123456", whole=False), {}, 100, take)
    assert room.held == 0
