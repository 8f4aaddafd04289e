"""From a key to its principal without asking the market on each call, and without trusting an answer for long.

An answer is used for a second at most. Half a second after it was given the market is asked again in the background, so
that a key in steady use never waits. `forget` drops keys at once. Only while the market cannot be asked at all is an
older answer still used, for a minute. Refusals are kept for a second, so that a wrong key costs one question, not many.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict

from model_store.errors import Forbidden, Refusal, Unauthenticated
from serving.errors.access import key_expired, key_missing
from serving.errors.node import admission_unavailable
from serving.ports import Admission, Principal

_log = logging.getLogger("algomart.keys")
REFRESH_S = 0.5
MAX_AGE_S = 1.0
MAX_AGE_CUT_OFF_S = 60.0
REFUSAL_S = 1.0
MAX_TOKEN_BYTES = 512


def digest_of_token(token: bytes) -> bytes:
    """What a key is known by here."""
    return hashlib.sha256(token).digest()


class _Known:
    __slots__ = ("asked_at", "principal")

    def __init__(self, principal: Principal, asked_at: float) -> None:
        self.principal, self.asked_at = principal, asked_at


class KeyCache:
    """Bounded, least recently used first out. Keyed by SHA-256: keys themselves are not kept. Event loop only."""

    def __init__(self, admission: Admission, max_entries: int = 10_000) -> None:
        self._admission = admission
        self._max = max_entries
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, Refusal]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal]] = {}
        self._generation = 0
        self.asked = 0

    def peek(self, token: bytes, digest: bytes | None = None) -> Principal | None:
        """The principal if a fresh answer is held; never waits. Starts the background question when it is due.

        `digest`: the token's, by `digest_of_token`, where the caller has it already.
        """
        if digest is None:
            digest = digest_of_token(token)
        known = self._known.get(digest)
        if known is None:
            return None
        age = time.monotonic() - known.asked_at
        if age > REFRESH_S:
            if age > MAX_AGE_S:
                return None
            if digest not in self._asking:
                self._ask(digest, token)
        principal = known.principal
        if principal.expires_at_ms and principal.expires_at_ms <= time.time_ns() // 1_000_000:
            return None
        return principal

    async def principal_of(self, token: bytes) -> Principal:
        """The principal of a key. Raises `Unauthenticated`, `Forbidden`, `Unavailable` ADMISSION_UNAVAILABLE."""
        if not token or len(token) > MAX_TOKEN_BYTES:
            raise key_missing()
        found = self.peek(token)
        if found is not None:
            return found
        digest = digest_of_token(token)
        refused = self._refused.get(digest)
        if refused is not None and time.monotonic() - refused[0] < REFUSAL_S:
            raise refused[1]
        task = self._asking.get(digest) or self._ask(digest, token)
        try:
            principal = await asyncio.shield(task)
        except (Unauthenticated, Forbidden):
            raise
        except Exception:
            known = self._known.get(digest)
            if known is None or time.monotonic() - known.asked_at > MAX_AGE_CUT_OFF_S:
                raise
            principal = known.principal
        if principal.expires_at_ms and principal.expires_at_ms <= time.time_ns() // 1_000_000:
            raise key_expired()
        return principal

    def forget(self, *key_ids: str) -> None:
        """These keys must be asked for again, from the next call on (all keys, if none is named)."""
        self._generation += 1  # an answer under way may be from before
        if not key_ids:
            self._known.clear()
        for digest in [each for each, known in self._known.items() if known.principal.key_id in key_ids]:
            del self._known[digest]
        self._refused.clear()
        self._asking.clear()

    def _ask(self, digest: bytes, token: bytes) -> asyncio.Task[Principal]:
        task = asyncio.get_running_loop().create_task(self._authenticate(digest, token))
        self._asking[digest] = task
        task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    def _asked(self, digest: bytes, task: asyncio.Task[Principal]) -> None:
        if self._asking.get(digest) is task:
            del self._asking[digest]
        if not task.cancelled():
            task.exception()  # seen: a background question has nobody else to tell

    async def _authenticate(self, digest: bytes, token: bytes) -> Principal:
        generation, at = self._generation, time.monotonic()
        self.asked += 1
        try:
            principal = await self._admission.authenticate(token.decode("latin-1"))
        except (Unauthenticated, Forbidden) as refusal:
            self._known.pop(digest, None)
            if generation == self._generation:
                self._refused[digest] = (at, refusal)
                while len(self._refused) > self._max:
                    self._refused.popitem(last=False)
            raise
        except Refusal:
            raise
        except Exception as error:
            _log.exception("authenticate failed")
            raise admission_unavailable() from error
        if generation == self._generation:
            self._known[digest] = _Known(principal, at)
            self._known.move_to_end(digest)
            while len(self._known) > self._max:
                self._known.popitem(last=False)
        return principal
