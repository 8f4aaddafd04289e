"""A node's ties to its market outlast what goes wrong for a moment: on its own disk, or in an answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import serving.remote.catalogue
import serving.remote.shipping
from serving.journal import JournalWriter
from serving.ports import Principal
from serving.remote.catalogue import RemoteCatalogue
from serving.remote.clock import ClockOffset
from serving.remote.node import MarketTies
from serving.remote.shipping import Shipper
from serving.remote.wire import PREFIX, WireChanges, encode_catalogue
from serving.siblings import ProcessGroup
from tests.ports import free_port
from tests.serving.parts import Node, running_node, until


class Link:
    """A market that takes journals, and answers `answers` in turn to whoever follows it, then that nothing changed."""

    def __init__(self, answers: list[bytes] | None = None) -> None:
        self.answers = answers or []
        self.taken = b""
        self.clock = ClockOffset()

    async def call(self, method: str, path: str, **given: Any) -> bytes:
        if method == "PUT":
            self.taken += given["content"]
            return b"{}"
        if path == f"{PREFIX}/catalogue":
            return encode_catalogue("start", 7, [])
        await asyncio.sleep(0)
        if self.answers:
            return self.answers.pop(0)
        await asyncio.sleep(0.01)
        return msgspec.json.encode(WireChanges("start", 7, False))


async def test_a_journal_is_shipped_once_its_file_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.remote.shipping, "AGAIN_S", 0.01)
    journal, link = JournalWriter(tmp_path, "edge", 1), Link()
    away = journal.path.rename(tmp_path / "away")
    shipping = asyncio.create_task(Shipper(link, journal).run())  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    away.rename(journal.path)
    await until(lambda: len(link.taken) == journal.synced_bytes)
    assert link.taken == journal.path.read_bytes()
    assert not shipping.done()
    shipping.cancel()
    journal.close()


async def test_a_catalogue_is_followed_on_after_a_change_that_could_not_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.remote.catalogue, "AGAIN_S", 0.01)
    everything = msgspec.json.encode(WireChanges("start", 7, True))
    catalogue = RemoteCatalogue(Link([everything, b"no JSON", everything]), tmp_path)  # type: ignore[arg-type]
    told: list[str | None] = []

    def on_terms(listing_id: str | None) -> None:
        told.append(listing_id)
        if len(told) == 1:
            raise RuntimeError("the first time it goes wrong here")

    catalogue.on_terms = on_terms
    following = asyncio.create_task(catalogue.follow())
    await until(lambda: len(told) == 2)
    assert not following.done()
    following.cancel()
    assert catalogue.visible(Principal("key", "org", "enterprise", frozenset())) == []


async def refused(node: Node, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=node.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.get(path, headers={"x-request-id": "req-7", **headers})


async def test_what_nobody_answers_at_a_node_of_a_market_is_refused_as_everything_is(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        link = Link()
        node.app.inner = MarketTies(node.dataplane, RemoteCatalogue(link, tmp_path), link)  # type: ignore[arg-type]
        answer = await refused(node, "/city")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NO_SUCH_PATH")
        assert answer.headers["x-request-id"] == "req-7"
        assert 'algomart_refusals_total{code="NO_SUCH_PATH"} 1' in (await refused(node, "/metrics")).text


async def test_a_sibling_that_is_away_is_told_and_counted(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with running_node(tmp_path) as node:
        node.app.siblings = ProcessGroup(1, [nobody, nobody], ["a", "b"], "secret")
        answer = await refused(node, "/api/v1/listings")
        code = answer.json()["error"]["code"]
        assert (answer.status_code, answer.headers["x-request-id"]) == (503, "req-7")
        assert int(answer.headers["retry-after"]) > 0
        metrics = await refused(node, "/metrics", **{"x-algomart-ask": "secret"})
        assert f'algomart_refusals_total{{code="{code}"}} 1' in metrics.text
