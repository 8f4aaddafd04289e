"""Passwords: argon2id, with a bound on length, and a bound on guesses per account."""

from __future__ import annotations

import threading
from collections import OrderedDict

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from model_store.errors import BadInput, TooMany

MIN_PASSWORD_CHARACTERS = 10
MAX_PASSWORD_CHARACTERS = 200  # hashing an endless password would be a way to stall the market
MAX_FAILURES = 10
FAILURE_WINDOW_MS = 15 * 60_000
_MAX_TRACKED_ACCOUNTS = 10_000
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # OWASP's argon2id setting: 19 MiB, t=2, p=1
_NOBODY = _HASHER.hash("nobody-has-this-password")


def check_password(password: str, *, field: str = "password") -> None:
    """`BadInput` PASSWORD_WEAK unless it has 10 to 200 characters, more than one of them different."""
    if MIN_PASSWORD_CHARACTERS <= len(password) <= MAX_PASSWORD_CHARACTERS and len(set(password)) > 3:
        return
    raise BadInput(
        "PASSWORD_WEAK",
        zh=f"密码须为 {MIN_PASSWORD_CHARACTERS} 至 {MAX_PASSWORD_CHARACTERS} 个字符, 且不能只重复少数几个字符",
        en=f"a password has {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} characters, not only three of them",
        remedy_zh="请用一句自己记得住的话作密码",
        remedy_en="use a sentence that you can remember",
        field=field,
    )


def hash_password(password: str) -> str:
    """An argon2id hash with its parameters and salt."""
    return _HASHER.hash(password)


def password_fits(password_hash: str, password: str) -> bool:
    """Whether the password is the one hashed. An unknown account costs the same time as a known one: pass ""."""
    try:
        fits = _HASHER.verify(password_hash or _NOBODY, password[: MAX_PASSWORD_CHARACTERS + 1])
    except (Argon2Error, InvalidHashError):
        return False
    return fits and bool(password_hash)


class LoginThrottle:
    """Counts failures per account in memory; a restart forgives. Bounded, oldest forgotten first."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, account: str, at_ms: int) -> None:
        """`TooMany` LOGIN_THROTTLED after ten failures in fifteen minutes."""
        with self._lock:
            recent = [t for t in self._failures.get(account, []) if t > at_ms - FAILURE_WINDOW_MS]
        if len(recent) >= MAX_FAILURES:
            raise TooMany(
                "LOGIN_THROTTLED",
                zh="登录失败次数过多, 请稍后再试",
                en="too many failed logins for this account",
                remedy_zh="请 15 分钟后再试, 或重置密码",
                remedy_en="wait a quarter of an hour, or reset the password",
                retry_after_s=max(1, (recent[0] + FAILURE_WINDOW_MS - at_ms) // 1000),
            )

    def failed(self, account: str, at_ms: int) -> None:
        with self._lock:
            times = self._failures.pop(account, [])
            self._failures[account] = [*times[-MAX_FAILURES:], at_ms]
            while len(self._failures) > _MAX_TRACKED_ACCOUNTS:
                self._failures.popitem(last=False)

    def succeeded(self, account: str) -> None:
        with self._lock:
            self._failures.pop(account, None)
