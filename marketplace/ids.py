"""Identifiers: a short kind prefix and a ULID, so that a reader of a log knows what an id names, and ids sort by
time.
"""

from __future__ import annotations

from ulid import ULID


def new_id(kind: str) -> str:
    """For example `org_01J9…`. Kinds: org mem inv key lst ver prc rev flg ntc aud prg app vch sub rsv lea chg tfr
    job chs smp blb.
    """
    return f"{kind}_{ULID()}"
