"""One process at a time on a data folder: two of them would write one journal."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import Conflict

LOCK = "market.lock"


@contextmanager
def hold_folder(home: Path) -> Iterator[None]:
    """Hold the folder; the kernel lets go when a process dies. Raises `Conflict` HOME_IN_USE."""
    with (home / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "HOME_IN_USE",
                zh=f"数据目录 {home} 正被另一个进程使用",
                en=f"another market or node is running on {home}",
                remedy_zh="请先停止它, 或设置另一个 ALGOMART_HOME",
                remedy_en="stop it first, or set another ALGOMART_HOME",
            ) from None
        handle.write(str(os.getpid()))
        handle.flush()
        yield
