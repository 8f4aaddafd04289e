"""One call of an MLflow client on its way: parsed, and its ids proved to be the caller's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from marketplace.access import Actor
from marketplace.tracking.endpoints import EXPERIMENT, Endpoint
from marketplace.tracking.refusals import bad_request
from marketplace.tracking.tenancy import Tenancy

_SNAKE = re.compile(r"[a-z0-9_]+")


@dataclass(slots=True)
class Call:
    """`path` from `/api/` on; `params` its placeholders. A GET carries `query`, everything else `body`."""

    actor: Actor
    endpoint: Endpoint
    path: str
    params: dict[str, str]
    query: dict[str, list[str]] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def organisation(self) -> str:
        return self.actor.organisation_id

    @property
    def method(self) -> str:
        return self.endpoint.method

    def text(self, name: str, default: str = "") -> str:
        """A single value of query or body as text."""
        if self.method == "GET":
            return self.query.get(name, [default])[0]
        value = self.body.get(name, default)
        return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else default

    def put(self, name: str, value: str) -> None:
        """Replace a value."""
        if self.method == "GET":
            self.query[name] = [value]
        else:
            self.body[name] = value


async def scope_ids(call: Call, tenancy: Tenancy) -> None:
    """Prove that every id which the endpoint names is the caller's; experiment "0" becomes the caller's default.

    A protobuf message in JSON may spell its fields in camelCase, and MLflow would read them: so only the spelling that
    is checked here is let through. Raises `NotFound`, `BadInput`.
    """
    source = call.query if call.method == "GET" else call.body
    check_spelling(source)
    for kind, where in call.endpoint.ids:
        name = where.removesuffix("?")
        if name in call.params:
            await tenancy.check(call.organisation, kind, call.params[name])
            continue
        found = False
        names = (name, "run_uuid") if name == "run_id" else (name,)  # MLflow still takes the old name of a run's id
        for each in names:
            for holder, key in _places(source, each.split("."), optional=where.endswith("?") or each != name):
                holder[key] = await _checked(call.organisation, kind, holder[key], tenancy)
                found = True
        if not found and not where.endswith("?"):
            raise bad_request(f"缺少 {name}", f"{name} is missing", name)


async def _checked(organisation: str, kind: str, value: Any, tenancy: Tenancy) -> Any:
    if isinstance(value, list):
        return [await _checked(organisation, kind, each, tenancy) for each in value]
    if kind == EXPERIMENT:
        return await tenancy.experiment(organisation, value)
    return await tenancy.check(organisation, kind, value)


def check_spelling(holder: dict[str, Any]) -> None:
    """Field names in snake_case only."""
    for key in holder:
        if not _SNAKE.fullmatch(key):
            raise bad_request(f"字段名“{key[:40]}”无效", f"{key[:40]!r} is not a field name", key[:40])


def _places(holder: Any, steps: list[str], *, optional: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the field stands. Each element of a list must have it, unless it is optional."""
    if isinstance(holder, list):
        for each in holder:
            yield from _places(each, steps, optional=optional)
        return
    if not isinstance(holder, dict):
        raise bad_request("请求结构无效", f"an object with {steps[0]} is expected", steps[0])
    check_spelling(holder)
    step, *rest = steps
    if holder.get(step) in (None, "", []):
        if not optional:
            raise bad_request(f"缺少 {step}", f"{step} is missing", step)
    elif rest:
        yield from _places(holder[step], rest, optional=optional)
    else:
        yield holder, step
