"""Triton's own words and names, for clients that check them: its examples, and what was written by them.

Switched on by `triton_compat`: the server calls itself `triton`, a model may be named without its vendor, and the
errors that Triton's clients look for begin as Triton's do, with ours behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from model_store.errors import Refusal
from model_store.names import path_name
from serving.errors.rendering import refusal_text
from serving.ports import BundleSource, Principal

SERVER = "triton"
TABLE_S = 1.0
TABLES_KEPT = 1000


def triton_text(refusal: Refusal) -> str:
    """As `refusal_text`, with Triton's own sentence before it where its clients look for one."""
    details, own = refusal.details, ""
    if "loading" in details:
        own = f"failed to load '{details['loading']}', failed to poll from model repository"
    elif refusal.code == "MODEL_NOT_FOUND" and not _is_number(details.get("version") or "0"):
        own = f"failed to get model version from specified version string '{details['version']}'"
    elif refusal.code == "MODEL_NOT_FOUND" and "model" in details:
        version = f" version {details['version']}" if details.get("version") else ""
        own = f"Request for unknown model: '{details['model']}'{version} is not found"
    elif refusal.code == "TENSOR_SHAPE":
        model = f" for model '{details['model']}'" if "model" in details else ""
        wanted, got = (",".join(map(str, details[part])) for part in ("expected", "got"))
        own = f"unexpected shape for input '{refusal.field}'{model}. Expected [{wanted}], got [{got}]"
    elif details.get("beside") == "contents":
        own = (
            f"contents field must not be specified when using raw_input_contents for '{refusal.field}' "
            f"for model '{details['model']}'"
        )
    return f"{own} · {refusal_text(refusal)}" if own else refusal_text(refusal)


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdigit()


class BareNames:
    """`simple` for `vendor/simple`, where only one of the models that the caller may see is called so.

    Who sees what is looked up anew once a second for each organisation.
    """

    def __init__(self, bundles: BundleSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._bundles, self._clock = bundles, clock
        self._tables: dict[str, tuple[float, dict[str, str]]] = {}

    def full(self, principal: Principal, name: str) -> str:
        """The name with its vendor; as it is where it has one, or stands for no model or for several."""
        if "/" in name or "--" in name:
            return name
        return self._table(principal).get(name) or name

    def shown(self, principal: Principal, name: str) -> str:
        """`vendor/name` as this caller may write it: bare where that is enough, else `vendor--name`."""
        bare = name.rpartition("/")[2]
        return bare if self._table(principal).get(bare) == name else path_name(name)

    def _table(self, principal: Principal) -> dict[str, str]:
        now = self._clock()
        until, table = self._tables.get(principal.organisation, (0.0, {}))
        if now >= until:
            table = {}
            for served in self._bundles.visible(principal):
                bare = served.name.rpartition("/")[2]
                table[bare] = "" if bare in table else served.name  # several: none of them
            if len(self._tables) >= TABLES_KEPT:
                self._tables.clear()
            self._tables[principal.organisation] = (now + TABLE_S, table)
        return table
