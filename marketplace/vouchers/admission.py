"""`serving.ports.Admission` over the market's own database: the desk and the keys, run in a bounded pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from marketplace.clock import now_ms
from marketplace.settings import Settings
from marketplace.vouchers.desk import LeaseDesk
from serving.metering import Lease
from serving.ports import Principal, ServedVersion

THREADS = 4


class MarketAdmission:
    """Admission of the embedded market. `authenticate(token) → Principal` is `keys.principals.authenticate`, bound."""

    def __init__(
        self,
        engine: Engine,
        authenticate: Callable[[str], Principal],
        settings: Settings,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.desk = LeaseDesk(engine, settings, clock)
        self._authenticate = authenticate
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admission")

    async def authenticate(self, token: str) -> Principal:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._authenticate, token)

    async def open_lease(
        self,
        principal: Principal,
        served: ServedVersion,
        *,
        node: str,
        epoch: int,
        need_micro: int,
        purpose: str,
        held: Mapping[str, int],
    ) -> Lease:
        """See the port; the desk's transaction goes on to its end even if the caller goes away meanwhile."""

        def ask() -> Lease:
            return self.desk.open(
                principal, served, node=node, epoch=epoch, need_micro=need_micro, purpose=purpose, held=dict(held)
            )

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
