"""`/metrics` of a node: for callers of this machine, for who has the token, and for the processes beside it."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serving.asgi import Scope

if TYPE_CHECKING:
    from serving.app import ServingApp


async def metrics_page(app: ServingApp, scope: Scope) -> bytes | None:
    """The exposition, with that of every process behind the port; only this one's for one of them. None: who asks may
    not read it."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    token = app.dataplane.settings.metrics_token.encode()
    given = headers.get(b"authorization", b"")
    passed_on = app.siblings is not None and app.siblings.is_from_one(scope)
    if not (passed_on or _is_loopback(scope, headers) or (token and hmac.compare_digest(given, b"Bearer " + token))):
        return None
    of_the_log = {} if app.access_log is None else {"algomart_access_log_dropped_total": app.access_log.dropped}
    body = app.dataplane.statistics.prometheus(app.dataplane.gauges() | app.gauges() | of_the_log)
    body += app.dataplane.loop_lag.prometheus()
    if app.siblings is not None and not passed_on:
        body = await app.siblings.metrics(body)
    return body


def _is_loopback(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """A caller on this machine itself; what a proxy passes on is not."""
    client = scope.get("client")
    if client is None or b"x-forwarded-for" in headers or b"forwarded" in headers:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
