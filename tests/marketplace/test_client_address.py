"""Whose request it is behind proxies, and what is counted by it."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from marketplace.app import RequestIds, create_api
from marketplace.client_address import client_address, read_networks, throttled_as
from marketplace.vouchers import objections
from model_store.errors import BadInput

TRUSTED = read_networks("10.0.0.5, 192.168.7.0/28,fd00:5::/64")
PROXY, CLIENT = "10.0.0.5", "203.0.113.9"


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (CLIENT, [], CLIENT),
        (CLIENT, ["198.51.100.1"], CLIENT),  # made up: its sender is no proxy
        (PROXY, [], PROXY),
        (PROXY, [CLIENT], CLIENT),
        (PROXY, [f"198.51.100.1, {CLIENT}"], CLIENT),  # made up left of what the proxy saw
        (PROXY, [f"10.0.0.5, {CLIENT}"], CLIENT),  # and so that it looks like a proxy's
        (PROXY, ["198.51.100.1", CLIENT], CLIENT),  # as a header of its own
        (PROXY, [f"{CLIENT}, 192.168.7.2"], CLIENT),  # a proxy before a proxy
        (PROXY, ["192.168.7.3, 192.168.7.2"], "192.168.7.3"),  # from a proxy itself
        (PROXY, [f"{CLIENT}:5123"], CLIENT),
        (PROXY, ["unknown"], PROXY),
        (PROXY, [f"{CLIENT}, unknown"], PROXY),
        (PROXY, [""], PROXY),
        (f"::ffff:{PROXY}", [f"::ffff:{CLIENT}"], CLIENT),
        ("fd00:5::1", ["2001:db8::7"], "2001:db8::7"),
        ("fd00:5::1%eth0", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("fd00:6::1", ["2001:db8::7"], "fd00:6::1"),
        ("2001:DB8:0::7", [], "2001:db8::7"),
        ("", [CLIENT], ""),
        ("a.sock", [CLIENT], "a.sock"),
        (PROXY, [f"{CLIENT}, " + ", ".join([PROXY] * 1000)], PROXY),  # a bound to how far it is read
    ],
)
def test_the_address_is_the_rightmost_hop_that_is_no_trusted_proxy(peer, forwarded, address):
    assert client_address(peer, forwarded, TRUSTED) == address


def test_without_trusted_proxies_the_header_is_never_read():
    assert client_address(PROXY, [CLIENT], read_networks("")) == PROXY
    assert read_networks("  ") == ()


def test_an_ipv6_client_counts_as_its_network_of_64_bits():
    assert throttled_as("2001:db8:1:2::7") == throttled_as("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert throttled_as("2001:db8:1:3::7") != throttled_as("2001:db8:1:2::7")
    assert throttled_as(CLIENT) == CLIENT


@pytest.mark.parametrize("given", ["*", "10.0.0.5;10.0.0.6", "10.0.0.1/8", "proxy.example", "10.0.0.5,", "0.0.0.0/0",
                                   "::/0", "10.0.0.0/33"])  # fmt: skip
def test_a_setting_that_is_no_list_of_networks_is_refused(given):
    with pytest.raises(BadInput) as refused:
        read_networks(given)
    assert (refused.value.code, refused.value.field) == ("TRUSTED_PROXIES_INVALID", "ALGOMART_TRUSTED_PROXIES")
    assert "192.168.7.0/28" in refused.value.remedy_en  # what would be right


def objecting(market, peer, forwarded=""):
    """What an objection from there is answered with; there is nothing on notice, so 404 where it is let through."""
    with TestClient(RequestIds(create_api(market)), client=(peer, 4321)) as client:
        headers = {"X-Forwarded-For": forwarded} if forwarded else {}
        body = {"name": "周", "contact": "1", "reason": "不实"}
        return client.post("/api/v1/public-notices/app_none/objections", json=body, headers=headers).status_code


@pytest.fixture
def fresh_throttle(monkeypatch):
    monkeypatch.setattr(objections, "THROTTLE", objections.AddressThrottle())


@pytest.mark.usefixtures("fresh_throttle")
def test_behind_a_trusted_proxy_each_client_has_objections_of_its_own(market):
    market.settings.trusted_proxies = f"{PROXY}/32"
    assert [objecting(market, PROXY, CLIENT) for _ in range(11)] == [404] * 10 + [429]
    assert objecting(market, PROXY, "203.0.113.10") == 404
    assert objecting(market, PROXY, f"203.0.113.77, {CLIENT}") == 429  # a further hop made up buys nothing
    assert [objecting(market, PROXY, f"2001:db8::{n:x}") for n in range(1, 12)] == [404] * 10 + [429]


@pytest.mark.usefixtures("fresh_throttle")
def test_who_is_no_trusted_proxy_cannot_make_an_address_up(market):
    assert [objecting(market, CLIENT, f"198.51.100.{n}") for n in range(11)] == [404] * 10 + [429]
    market.settings.trusted_proxies = PROXY
    assert objecting(market, CLIENT, "198.51.100.99") == 429
