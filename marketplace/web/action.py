"""What one form of the pages does: the endpoint of the JSON API behind it, and what is asked before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Action:
    """One form. `back` is where it leads when done, with the form's fields in braces, and `{made}`
    for the id of what was made (not where something is asked first: there is none yet).

    `ask` (zh, en): what is asked before it is done. `reveal`: names of the answer that are shown once. `form`: the
    template that shows a refusal beside what was typed; "" shows it on a page of its own.
    """

    endpoint: Callable[..., Any]
    back: str
    ask: tuple[str, str] | None = None
    reveal: tuple[str, ...] = ()
    form: str = ""
    fixed: Mapping[str, str] | None = None
