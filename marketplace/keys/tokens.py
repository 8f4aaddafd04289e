"""Secrets that the market hands out once and afterwards knows only by their SHA-256."""

from __future__ import annotations

import hashlib
import secrets

KEY_PREFIX = "am_"
SHOWN_CHARACTERS = 8  # of a key, kept in clear so that its owner recognises it in a list


def new_key_secret() -> str:
    """A new API key: `am_` and 256 random bits in URL-safe base 64 (43 characters)."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_token() -> str:
    """A 256-bit token for a session, an invitation or a password reset."""
    return secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """SHA-256 in hex. Enough for secrets of 256 random bits; passwords go through argon2 instead."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
