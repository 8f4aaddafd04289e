"""Whose request it is, by address: of the connection, or where a trusted proxy passes it on, of whom the proxy saw.

A proxy appends the address that it saw to `X-Forwarded-For`; what stands left of it is what the client itself sent, and
may be made up. So it is read from the right, only if the connection comes from a trusted proxy, up to the first hop
that is none (MDN, "X-Forwarded-For: selecting an IP address"). uvicorn's own reading of it stays off (serving/server):
it would change the address for everybody, `/metrics` included.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from model_store.errors import BadInput

SETTING = "ALGOMART_TRUSTED_PROXIES"
MOST_HOPS = 16  # proxies in a row that are looked at
Networks = tuple[IPv4Network | IPv6Network, ...]


@lru_cache(maxsize=8)
def read_networks(text: str) -> Networks:
    """Networks from a comma-separated list of CIDRs or addresses. `BadInput` TRUSTED_PROXIES_INVALID."""
    return tuple(_network(part.strip()) for part in text.split(",")) if text.strip() else ()


def _network(part: str) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(part)
    except ValueError as error:
        raise _invalid(part, f"“{part[:60]}”不是地址或 CIDR 网段", f"{part[:60]!r} is no CIDR: {error}") from None
    if not found.prefixlen:
        raise _invalid(part, f"“{part}”包含所有地址", f"{part} is every address there is")
    return found


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str:
    """The client's address: `peer` (of the connection) unless it is trusted, else the rightmost hop that is not.

    `forwarded`: each `X-Forwarded-For` as it stands, in order. Where every hop is trusted it is the first of them; a
    hop that is no address ends the reading at the proxy that told it.
    """
    hops = [hop for line in forwarded for hop in line.split(",")][-MOST_HOPS:]
    found = _parsed(peer)
    while found is not None and hops and any(found in network for network in trusted):
        before = _parsed(hops.pop())
        if before is None:
            break
        found = before
    return peer if found is None else str(found)


def throttled_as(address: str) -> str:
    """What an address counts as: itself, or its /64 in IPv6, of which one client has every address."""
    found = _parsed(address)
    return str(IPv6Network((int(found), 64), strict=False)) if isinstance(found, IPv6Address) else address


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: bare, `1.2.3.4:5678`, `[2001:db8::1]:443`; IPv4 inside IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _invalid(part: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "TRUSTED_PROXIES_INVALID",
        zh=zh,
        en=en,
        remedy_zh=f"{SETTING} 只写代理自身的地址或网段, 以逗号分隔, 如 10.0.0.5,192.168.7.0/28; 没有代理则留空",
        remedy_en=f"name only the proxies themselves in {SETTING}, separated by commas, such as "
        "10.0.0.5,192.168.7.0/28; leave it empty where there are none",
        field=SETTING,
        details={"given": part[:60]},
    )
