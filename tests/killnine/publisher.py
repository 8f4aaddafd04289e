"""Somebody who publishes private models while the market is killed: each is whole afterwards, or gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np

from tests.marketplace.bundles import linear_onnx

PAUSE_S = 0.3


@dataclass
class Shelf:
    """`published`: what the market acknowledged with 201. `refused`: codes of answers that were none."""

    published: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0


class Publisher(threading.Thread):
    def __init__(self, url: str, key: str, stop: threading.Event) -> None:
        super().__init__(name="publisher")
        self._url, self._key, self._stop_asked = url, key, stop
        self.shelf = Shelf()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=60, trust_env=False) as client:
            count = 0
            while not self._stop_asked.wait(PAUSE_S):
                count += 1
                self._publish(client, f"demo-factory/made-{count}", count)

    def _publish(self, client: httpx.Client, name: str, seed: int) -> None:
        content = linear_onnx(np.full((4, 1), float(seed), np.float32))
        try:
            answer = client.post(
                "/api/v1/publish", files={"file": ("m.onnx", content)}, data={"name": name, "private": "true"}
            )
        except httpx.HTTPError:
            self.shelf.unanswered += 1
            time.sleep(PAUSE_S)
            return
        if answer.status_code == 201:
            self.shelf.published.append(name)
        else:
            code = str(answer.json()["error"]["code"])
            self.shelf.refused[code] = self.shelf.refused.get(code, 0) + 1
