"""A client that calls a model without end and writes down what was acknowledged, before it goes on.

One line an acknowledgement, `usage id, micro-fen`, on disk (fsync) before it counts. A call that went out and got no
whole answer is *in flight*: whether it was posted is for the market to say. With idempotency keys such a call is
repeated under its key until it is answered, so at the end nothing of that client is open.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PAUSE_S = 0.0005  # between two calls: eight clients on a machine that runs the market too
DOWN_S = 0.02
REFUSED_S = 0.2
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Work:
    """What one client does. `weights` are the model's own, so that every answer's number is checked."""

    number: int
    name: str  # of its acknowledgement file
    key: str
    key_id: str
    model: str  # vendor/name
    tensor: str
    weights: tuple[float, ...] | None
    width: int
    repeats: bool  # with Idempotency-Key, repeated until answered


@dataclass
class Tally:
    """What a client saw. `unanswered`: from when to when (monotonic) each call without a whole answer lasted."""

    acknowledged: int = 0
    unanswered: list[tuple[float, float]] = field(default_factory=list)
    wrong: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Client(threading.Thread):
    """Runs until `stop` is set; then `tally` is complete and the acknowledgement file whole."""

    def __init__(self, url: str, work: Work, folder: Path, seed: int, stop: threading.Event) -> None:
        super().__init__(name=work.name)
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self.work, self.tally = work, Tally()
        self.path = folder / f"{work.name}.log"
        self._random = random.Random(f"{seed} {work.number}")
        self._run_name = f"{seed}-{work.number}"
        self._stop_asked = stop
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        log = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            count = 0
            while not self._stop_asked.is_set():
                count += 1
                row = [float(self._random.randrange(100)) for _ in range(self.work.width)]
                self._call_to_the_end(log, row, f"{self._run_name}-{count}")
                time.sleep(PAUSE_S)
        finally:
            os.close(log)

    def _call_to_the_end(self, log: int, row: list[float], key: str) -> None:
        """Once; or, with idempotency keys, again under the same key until the market has answered."""
        while True:
            answered = self._call(log, row, key if self.work.repeats else "")
            if answered or not self.work.repeats:
                return
            time.sleep(DOWN_S)

    def _call(self, log: int, row: list[float], key: str) -> bool:
        """Whether there was an answer, be it a refusal."""
        connection = self._connection or self._connect()
        if connection is None:
            time.sleep(DOWN_S)
            return False
        tensor = {"name": self.work.tensor, "datatype": "FP32", "shape": [1, self.work.width], "data": row}
        headers = {"Authorization": f"Bearer {self.work.key}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        began = time.monotonic()
        try:
            connection.request("POST", self._path, json.dumps({"inputs": [tensor]}), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            self.tally.unanswered.append((began, time.monotonic()))
            self._close()
            return False
        if response.status != 200:
            code = str(json.loads(body).get("code"))
            self.tally.refused[code] = self.tally.refused.get(code, 0) + 1
            time.sleep(REFUSED_S)
            return response.status < 500
        self._acknowledge(log, response, body, row)
        return True

    def _acknowledge(self, log: int, response: http.client.HTTPResponse, body: bytes, row: list[float]) -> None:
        usage_id, amount = response.headers["x-usage-id"], response.headers["x-amount-micro"]
        os.write(log, f"{usage_id} {amount}\n".encode())
        os.fsync(log)
        self.tally.acknowledged += 1
        if self.work.weights is not None:
            wanted = sum(value * weight for value, weight in zip(row, self.work.weights, strict=True))
            if json.loads(body)["outputs"][0]["data"] != [wanted]:
                self.tally.wrong += 1

    @property
    def _path(self) -> str:
        return f"/v2/models/{self.work.model.replace('/', '--')}/infer"

    def _connect(self) -> http.client.HTTPConnection | None:
        """None while nobody listens."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.connect()
        except OSError:
            return None
        self._connection = connection
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def acknowledgements(path: Path) -> dict[str, int]:
    """Usage id → micro-fen, as written down; no usage id twice."""
    found: dict[str, int] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        usage_id, amount = line.split()
        assert usage_id not in found, f"acknowledged twice: {usage_id}"
        found[usage_id] = int(amount)
    return found
