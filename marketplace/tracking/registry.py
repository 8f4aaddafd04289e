"""Rules of registered models and versions: read what one may see, write under one's own prefix.

A version is made in the registry and in the market at once (`registering`), aliases are kept in both, and what is
published is not renamed, restaged or deleted here: the market's lifecycle (retire, withdraw) is the one there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio.to_thread

from marketplace.access import Actor
from marketplace.catalogue import aliases as alias_rows
from marketplace.catalogue.publishing_gate import GATE
from marketplace.catalogue.source import RUNNABLE_STATES
from marketplace.db import transaction
from marketplace.market import Market
from marketplace.tracking.artifacts import Artifacts
from marketplace.tracking.calls import Call
from marketplace.tracking.refusals import bad_request, kept, not_found, not_offered, not_yours
from marketplace.tracking.registering import Registering
from marketplace.tracking.sharing import Shelf, canonical_or_none, shelf, shelves
from marketplace.tracking.upstream import Answer, Upstream
from model_store.errors import NotFound, Refusal
from model_store.names import check_alias

API = "/api/2.0/mlflow"
MAX_PAGE, MAX_ROUNDS = 1000, 50
OWN_TAGS = "algomart."
PROMPT_TAG = "mlflow.prompt"
Row = dict[str, Any]


class RegistryRules:
    """Each method is a rule that `endpoints` names: `await rule(call) → Answer`."""

    def __init__(self, market: Market, upstream: Upstream, registering: Registering, artifacts: Artifacts) -> None:
        self._market, self._upstream = market, upstream
        self._registering, self._artifacts = registering, artifacts

    # --- reading ------------------------------------------------------------------------------------------------------
    async def get_model(self, call: Call) -> Answer:
        seen = await self._seen(call, "name")
        answer = await self._forward(call)
        _trim(answer.body.get("registered_model"), seen)
        return answer

    async def latest_versions(self, call: Call) -> Answer:
        seen = await self._seen(call, "name")
        answer = await self._forward(call)
        if answer.ok:
            rows = answer.body.get("model_versions", [])
            answer.body["model_versions"] = [row for row in rows if int(row["version"]) in seen.versions]
        return answer

    async def search_models(self, call: Call) -> Answer:
        def keep(rows: list[Row], seen: dict[str, Shelf]) -> list[Row]:
            shown = [row for row in rows if row["name"] in seen and seen[row["name"]].seen]
            for row in shown:
                _trim(row, seen[row["name"]])
            return shown

        return await self._search(call, "registered_models", keep)

    async def search_versions(self, call: Call) -> Answer:
        def keep(rows: list[Row], seen: dict[str, Shelf]) -> list[Row]:
            return [row for row in rows if row["name"] in seen and int(row["version"]) in seen[row["name"]].versions]

        return await self._search(call, "model_versions", keep)

    async def get_version(self, call: Call) -> Answer:
        seen, number = await self._seen(call, "name"), _number(call.text("version"))
        if number not in seen.versions:
            raise not_found("model version", f"{call.text('name')}/{number}")
        return await self._forward(call)

    async def by_alias(self, call: Call) -> Answer:
        seen = await self._seen(call, "name")
        answer = await self._forward(call)
        if answer.ok and int(answer.body["model_version"]["version"]) not in seen.versions:
            raise not_found("model version", f"{call.text('name')}@{call.text('alias')}")
        return answer

    # --- writing ------------------------------------------------------------------------------------------------------
    async def create_model(self, call: Call) -> Answer:
        """A registered model without a version is a name only; its listing comes with its first version."""
        _own_name(call.actor, call.text("name"))
        _refuse_prompt(call.body)
        return await self._forward(call)

    async def create_version(self, call: Call) -> Answer:
        """A version in MLflow and in the market, under one number; or neither, and the reason."""
        _own_name(call.actor, call.text("name"))
        _refuse_prompt(call.body)
        source = await self._registering.source_of(call)
        self._artifacts.frozen.add(source.folder)
        try:
            async with GATE.turn(call.actor.organisation_id):
                body = await anyio.to_thread.run_sync(self._registering.register, call.actor, call.body, source)
        finally:
            self._artifacts.frozen.discard(source.folder)
        return Answer(200, body)

    async def change_model(self, call: Call) -> Answer:
        """Description and tags of one's own."""
        await self._own(call)
        return await self._forward(call)

    async def change_version(self, call: Call) -> Answer:
        seen, number = await self._own(call), _number(call.text("version"))
        if number not in seen.versions:
            raise not_found("model version", f"{call.text('name')}/{number}")
        return await self._forward(call)

    async def delete_model(self, call: Call) -> Answer:
        """Only a name that was never published under."""
        seen = await self._own(call)
        if seen.listing is not None:
            raise _published(call.text("name"))
        return await self._forward(call)

    async def keep_published(self, call: Call) -> Answer:
        await self._own(call)
        raise _published(call.text("name"))

    async def set_alias(self, call: Call) -> Answer:
        """In the registry and in the catalogue: `vendor/name@alias` runs it from now on."""
        alias, number = check_alias(call.text("alias")), _number(call.text("version"))
        seen = await self._own(call)
        version = seen.versions.get(number)
        if seen.listing is None or version is None:
            raise not_found("model version", f"{call.text('name')}/{number}")
        if version.state not in RUNNABLE_STATES:
            raise kept(
                f"版本 {number} 处于“{version.state}”状态, 不能设为别名",
                f"version {number} is {version.state}; an alias needs one that can be called",
                "请选择其他版本",
                "choose another version",
            )
        answer = await self._forward(call)
        if answer.ok:
            try:
                await anyio.to_thread.run_sync(self._keep_alias, call.actor, seen, alias, number)
            except Refusal:  # too many aliases: then neither of the two has it
                await self._upstream.call("DELETE", call.path, body={"name": call.text("name"), "alias": alias})
                raise
        return answer

    async def delete_alias(self, call: Call) -> Answer:
        seen = await self._own(call)
        answer = await self._forward(call)
        if answer.ok and seen.listing is not None:
            await anyio.to_thread.run_sync(self._drop_alias, call.actor, seen, call.text("alias"))
        return answer

    # --- what they are made of ----------------------------------------------------------------------------------------
    async def _forward(self, call: Call) -> Answer:
        if call.method == "GET":
            return await self._upstream.call("GET", call.path, query=call.query)
        return await self._upstream.call(call.method, call.path, body=call.body)

    async def _seen(self, call: Call, field: str) -> Shelf:
        name = call.text(field)
        found = await anyio.to_thread.run_sync(shelf, self._market.engine, call.actor, name)
        if not found.seen:
            raise not_found("registered model", name)
        return found

    async def _own(self, call: Call) -> Shelf:
        name = call.text("name")
        _own_name(call.actor, name)
        if call.text("key").startswith(OWN_TAGS):
            raise kept(
                f"以 {OWN_TAGS} 开头的标签由市场维护",
                f"tags that begin with {OWN_TAGS} are the market's",
                "请换一个标签名",
                "use another key",
            )
        return await anyio.to_thread.run_sync(shelf, self._market.engine, call.actor, name)

    async def _search(self, call: Call, what: str, keep: Callable[[list[Row], dict[str, Shelf]], list[Row]]) -> Answer:
        """Page through MLflow's answer until the caller's page is full of what the caller may see."""
        wanted = min(max(_number(call.text("max_results", "100")), 1), MAX_PAGE)
        found: list[Row] = []
        token = call.text("page_token")
        for _ in range(MAX_ROUNDS):
            call.query["max_results"] = [str(wanted - len(found))]
            call.query.pop("page_token", None)
            if token:
                call.query["page_token"] = [token]
            answer = await self._forward(call)
            if not answer.ok:
                return answer
            rows: list[Row] = answer.body.get(what, [])
            names = {str(row["name"]) for row in rows}
            seen = await anyio.to_thread.run_sync(shelves, self._market.engine, call.actor, names)
            found += keep(rows, seen)
            token = str(answer.body.get("next_page_token") or "")
            if not token or len(found) >= wanted:
                break
        return Answer(200, {what: found} | ({"next_page_token": token} if token else {}))

    def _keep_alias(self, actor: Actor, seen: Shelf, alias: str, number: int) -> None:
        assert seen.listing is not None
        with transaction(self._market.engine) as session:
            alias_rows.set_alias(session, seen.listing, alias, seen.versions[number], actor=actor.id)
        self._market.catalogue_changed(seen.listing.id)

    def _drop_alias(self, actor: Actor, seen: Shelf, alias: str) -> None:
        assert seen.listing is not None
        try:
            with transaction(self._market.engine) as session:
                alias_rows.delete_alias(session, seen.listing, alias, actor=actor.id)
        except NotFound:
            return  # in the registry only: gone from both now
        self._market.catalogue_changed(seen.listing.id)


def _trim(row: Row | None, seen: Shelf) -> None:
    """Leave out of a registered model what the caller may not see."""
    if row is None:
        return
    numbers = seen.versions
    row["latest_versions"] = [each for each in row.get("latest_versions", []) if int(each["version"]) in numbers]
    row["aliases"] = [each for each in row.get("aliases", []) if int(each["version"]) in numbers]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise bad_request(f"“{text[:40]}”不是整数", f"{text[:40]!r} is not a whole number", "version")
    return int(text)


def _own_name(actor: Actor, name: str) -> None:
    """The registered name is lawful and begins with the caller's own prefix."""
    canonical = canonical_or_none(name)
    if canonical is None:
        raise bad_request(
            f"注册名“{name[:80]}”应为 供应商--模型 (小写字母、数字与单个连字符)",
            f"a registered model is named vendor--name in lower case; {name[:80]!r} is not",
            "name",
        )
    if not actor.slug or canonical.partition("/")[0] != actor.slug:
        raise not_yours(name, actor.slug)


def _refuse_prompt(body: dict[str, Any]) -> None:
    tags = body.get("tags") or []
    if any(isinstance(tag, dict) and str(tag.get("key", "")).startswith(PROMPT_TAG) for tag in tags):
        raise not_offered("the prompt registry")
    if any(isinstance(tag, dict) and str(tag.get("key", "")).startswith(OWN_TAGS) for tag in tags):
        raise bad_request(f"标签不能以 {OWN_TAGS} 开头", f"no tag begins with {OWN_TAGS}", "tags")


def _published(name: str) -> Exception:
    return kept(
        f"“{name[:80]}”已在市场发布, 不能在 MLflow 中改名、删除或改阶段",
        f"{name[:80]} is published in the market; MLflow cannot rename, delete or restage it",
        "请在供应商页或 /api/v1/models/…/withdraw 下架或撤回",
        "retire or withdraw the version in the market (/api/v1/models/…/versions/…/withdraw)",
    )
