"""Calls without a key, for trying things out: on a lone node that listens on this machine only.

Any program of any user of the machine may call then, but nothing else: a browser's page (which could reach a loopback
port, also under a name of its own) and whatever a proxy passes on are refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from model_store.errors import BadInput, Forbidden

_FROM_ELSEWHERE = (
    b"origin", b"referer", b"sec-fetch-site", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip",
    b"via",
)  # fmt: skip


def is_loopback(host: str) -> bool:
    """An address or name of this machine's own loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_loopback(host: str) -> None:
    """Raises `BadInput` NO_KEY_NEEDS_LOOPBACK where others than this machine could reach `host`."""
    if not is_loopback(host):
        raise BadInput(
            "NO_KEY_NEEDS_LOOPBACK",
            zh=f"免密钥只能监听本机地址, 不能监听 {host[:100]}",
            en=f"without a key a node listens on loopback only, not on {host[:100]}",
            remedy_zh="请去掉 --no-key, 或使用 --host 127.0.0.1",
            remedy_en="leave --no-key out, or use --host 127.0.0.1",
            field="host",
        )


def check_own_machine(headers: Mapping[bytes, bytes]) -> None:
    """Raises `Forbidden` NO_KEY_FROM_ELSEWHERE for a browser's page, a proxied request, or another name of the host."""
    host = headers.get(b"host", b"localhost").decode("latin-1")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if any(header in headers for header in _FROM_ELSEWHERE) or not is_loopback(name):
        raise Forbidden(
            "NO_KEY_FROM_ELSEWHERE",
            zh="免密钥只接受本机程序的直接调用, 不接受网页或代理转来的请求",
            en="without a key only programs of this machine may call, no web page and nothing that a proxy passes on",
            remedy_zh="请使用密钥, 或直接以 127.0.0.1 调用",
            remedy_en="use a key, or call 127.0.0.1 directly",
            field="authorization",
        )
