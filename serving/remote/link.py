"""The way to the market: HTTP with the node's token. What the market refuses is refused here with the same words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import orjson

from model_store.errors import Refusal, Unavailable
from serving.leases import now_ms
from serving.remote.clock import NOW_HEADER, ClockOffset

_log = logging.getLogger("algomart.link")
CONNECT_S = 5.0
ANSWER_S = 30.0
TOO_LARGE_FOR_A_REFUSAL = 64 << 10


class MarketLink:
    """Calls of one market. `call` on the event loop; `call_now` blocks, for before the loop runs."""

    def __init__(self, url: str, token: str) -> None:
        """`url`: the market's address, without a path."""
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self.http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self.clock = ClockOffset()
        self._now = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    async def call(self, method: str, path: str, **given: Any) -> bytes:
        """The body of the answer. Raises the market's own `Refusal`, and `Unavailable` MARKET_UNREACHABLE."""
        sent = now_ms()
        try:
            answer = await self.http.request(method, path, **given)
            self.clock.learn(sent, now_ms(), answer.headers.get(NOW_HEADER, ""))
            return _content(answer)
        except httpx.HTTPError as error:
            raise market_unreachable(self.url, error) from error

    def call_now(self, method: str, path: str, **given: Any) -> bytes:
        """As `call`, blocking."""
        sent = now_ms()
        try:
            answer = self._now.request(method, path, **given)
            self.clock.learn(sent, now_ms(), answer.headers.get(NOW_HEADER, ""))
            return _content(answer)
        except httpx.HTTPError as error:
            raise market_unreachable(self.url, error) from error

    async def download(self, path: str, target: Path) -> None:
        """The body of the answer into a new file. Raises as `call`, and OSError."""
        try:
            async with self.http.stream("GET", path) as answer:
                if answer.status_code >= 300:
                    raise refusal_of(answer.status_code, await answer.aread())
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise market_unreachable(self.url, error) from error

    async def close(self) -> None:
        self._now.close()
        await self.http.aclose()


def _content(answer: httpx.Response) -> bytes:
    if answer.status_code < 300:
        return answer.content
    raise refusal_of(answer.status_code, answer.content)


def refusal_of(status: int, content: bytes) -> Refusal:
    """The refusal that a market's answer carries; `Unavailable` MARKET_BROKEN where it carries none."""
    kind = next((each for each in Refusal.__subclasses__() if each.status == status), None)
    try:
        told = orjson.loads(content[:TOO_LARGE_FOR_A_REFUSAL])["error"]
        assert kind is not None, "a status that no refusal has"
        return kind(
            told["code"],
            zh=told["message_zh"],
            en=told["message"],
            remedy_zh=told.get("remedy_zh", ""),
            remedy_en=told.get("remedy", ""),
            field=told.get("field"),
            retry_after_s=told.get("retry_after_s"),
            details=told.get("details"),
        )
    except (orjson.JSONDecodeError, AssertionError, KeyError, TypeError):
        _log.error("the market answered %d: %.200r", status, content[:200])
        return Unavailable(
            "MARKET_BROKEN",
            zh=f"市场返回了无法理解的答复 (状态 {status})",
            en=f"the market's answer cannot be understood (status {status})",
            remedy_zh="请稍后重试; 若持续出现, 请检查市场地址与市场日志",
            remedy_en="try again shortly; if it lasts, look at the market's address and log",
            retry_after_s=5,
        )


def market_unreachable(url: str, error: Exception) -> Unavailable:
    """Calls inside leases that are held go on; what needs the market waits."""
    return Unavailable(
        "MARKET_UNREACHABLE",
        zh=f"暂时无法连接市场 {url}",
        en=f"the market at {url} cannot be reached just now",
        remedy_zh="请稍后重试; 节点已持有额度内的调用不受影响",
        remedy_en="try again shortly; calls inside leases that the node holds go on",
        retry_after_s=5,
        details={"reason": str(error)[:200] or type(error).__name__},
    )
