"""`serving.ports.Admission` of a node elsewhere: the market's own, asked over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from serving.leases import now_ms
from serving.metering import Lease
from serving.ports import Principal, ServedVersion
from serving.remote.link import MarketLink
from serving.remote.wire import PREFIX, LeaseAsk, lease_of, principal_of


class RemoteAdmission:
    """See the port for what it answers and raises; beside that `Unavailable` MARKET_UNREACHABLE."""

    def __init__(self, link: MarketLink) -> None:
        self._link = link

    async def authenticate(self, token: str) -> Principal:
        return principal_of(await self._link.call("POST", f"{PREFIX}/principals", content=token.encode("latin-1")))

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
        ask = LeaseAsk(
            principal.key_id,
            principal.organisation,
            served.listing_id,
            epoch,
            need_micro,
            purpose,
            dict(held),
            clock_ms=now_ms(),
        )
        return lease_of(await self._link.call("POST", f"{PREFIX}/leases", content=msgspec.json.encode(ask)))
