"""Bodies on their way in: bounded one by one, and large uploads together."""

from __future__ import annotations

import gzip

import pytest

from model_store.errors import BadInput, TooLarge, TooMany, TooSlow
from serving.bodies import MAX_MEMBERS, BodyRoom, Disconnected, Message, Receive, decompress, read_body
from serving.errors.node import uploads_full


def arriving(*parts: bytes, whole: bool = True) -> Receive:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if whole else {"type": "http.disconnect"})

    async def receive() -> Message:
        return messages.pop(0)

    return receive


def anything(size: int) -> None:
    """Room without end."""


async def test_a_body_is_read_in_the_parts_it_came_in() -> None:
    assert b"".join(await read_body(arriving(b"ab", b"c"), {}, 3, anything, 30.0)) == b"abc"


async def test_a_body_over_its_bound_or_cut_short_is_refused() -> None:
    with pytest.raises(TooLarge, match="BODY_TOO_LARGE"):
        await read_body(arriving(b"ab", b"cd"), {}, 3, anything, 30.0)
    with pytest.raises(TooLarge, match="BODY_TOO_LARGE"):
        await read_body(arriving(), {b"content-length": b"4"}, 3, anything, 30.0)
    with pytest.raises(Disconnected):
        await read_body(arriving(b"ab", whole=False), {}, 3, anything, 30.0)


async def test_uploads_that_together_are_too_large_are_refused_until_one_has_ended() -> None:
    room = BodyRoom(10, uploads_full)
    with room.place() as take:
        await read_body(arriving(b"123456"), {}, 100, take, 30.0)
        with pytest.raises(TooMany, match="UPLOADS_FULL") as refused, room.place() as other:
            await read_body(arriving(b"12", b"345"), {}, 100, other, 30.0)
        assert refused.value.retry_after_s
        assert refused.value.remedy_zh
        assert room.held == 6  # what the refused one had sent is given back
    assert room.held == 0
    with room.place() as take:
        await read_body(arriving(b"1234567890"), {}, 100, take, 30.0)


async def test_a_client_that_leaves_gives_its_room_back() -> None:
    room = BodyRoom(10, uploads_full)
    with pytest.raises(Disconnected), room.place() as take:
        await read_body(arriving(b"123456", whole=False), {}, 100, take, 30.0)
    assert room.held == 0


async def test_a_body_that_trickles_in_is_given_up_and_gives_its_room_back() -> None:
    room = BodyRoom(10, uploads_full)
    with pytest.raises(TooSlow, match="BODY_TOO_SLOW"), room.place() as take:
        await read_body(arriving(b"1", b"2"), {}, 100, take, -1.0)  # its time is over
    assert room.held == 0
    whole = arriving()
    assert await read_body(whole, {}, 100, anything, -1.0) == [b""]  # what is there is taken, however late


def test_a_body_of_several_gzip_members_is_their_contents_in_order() -> None:
    contents = [
        bytes([number]) * 50_000 * number for number in range(8)
    ]  # longer and shorter than what is read at once
    packed = b"".join(gzip.compress(content, mtime=0) for content in contents)
    assert decompress(packed, "gzip", 10**7) == b"".join(contents)
    with pytest.raises(TooLarge, match="BODY_TOO_LARGE"):
        decompress(packed, "gzip", sum(map(len, contents)) - 1)
    with pytest.raises(BadInput, match="ends too early"):
        decompress(packed[:-1], "gzip", 10**7)


def test_a_body_of_very_many_gzip_members_is_refused() -> None:
    """Each costs what a whole body does: 3 million of them, in 64 MiB, kept a thread for an hour."""
    member = gzip.compress(b" ", mtime=0)
    assert decompress(member * MAX_MEMBERS, "gzip", 10**6) == b" " * MAX_MEMBERS
    with pytest.raises(BadInput, match="BODY_ENCODING"):
        decompress(member * (MAX_MEMBERS + 1), "gzip", 10**6)
    with pytest.raises(BadInput, match="BODY_ENCODING"):
        decompress(gzip.compress(b"", mtime=0) * (MAX_MEMBERS + 1), "gzip", 10**6)
