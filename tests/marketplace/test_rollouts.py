"""Versions in traffic: a canary's share, a shadow's comparison, and the canary that goes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from marketplace.catalogue.rollouts import (
    FEWEST_CALLS,
    FEWEST_ROWS,
    Answers,
    Tally,
    decide_rollback,
    decide_rollback_by_answers,
)
from marketplace.catalogue.tables import Listing, Rollout
from marketplace.db import reading, transaction
from marketplace.housekeeping import Housekeeping
from marketplace.keys.service import create_key
from marketplace.market import Market
from model_store.errors import Refusal
from serving.dataplane import DataPlane
from serving.ports import Ports
from serving.protocols.oip_about import About
from tests.marketplace.shelf import add_listing, add_organisation, add_version
from tests.serving.parts import FACTORY, OPERATOR, Node, bundle, double, rows, running_node, until
from tests.serving.test_shadow import broken, scaled

ROLLOUT = "/api/v1/models/acme/wheel/rollout"


@pytest.fixture
def key(market: Market, tmp_path: Path) -> dict[str, str]:
    """The vendor's key. `acme/wheel`: 1 doubles, 2 does so too, 3 breaks on every call, 4 is not listed."""
    with transaction(market.engine) as session:
        acme = add_organisation(session, "acme")
        stranger = add_organisation(session, "other")
        listing = add_listing(session, "acme/wheel")
        for number, graph in ((1, double()), (2, scaled(2)), (3, broken())):
            add_version(session, listing, number, digest=shelved(tmp_path, number, graph))
        add_version(session, listing, 4, state="in_review", digest="none")
        keys = {
            slug: create_key(session, organisation, name="k", scopes=["publish"], actor="t")[1]
            for slug, organisation in (("acme", acme), ("other", stranger))
        }
    market.catalogue_changed()
    return {slug: f"Bearer {secret}" for slug, secret in keys.items()}


def shelved(home: Path, number: int, graph: Any) -> str:
    """The digest of its bundle, which lies where the market looks for it."""
    folder = home / "made" / str(number)
    digest = bundle(folder, "acme/wheel", graph).digest
    (home / "bundles").mkdir(exist_ok=True)
    folder.rename(home / "bundles" / digest)
    return digest


@pytest.fixture
def turned(market: Market, key: dict[str, str], tmp_path: Path) -> int:
    """The number of one more version: it answers with the sign turned."""
    with transaction(market.engine) as session:
        listing = session.get_one(Listing, "lst_acme/wheel")
        add_version(session, listing, 5, digest=shelved(tmp_path, 5, scaled(-2)))
    market.catalogue_changed()
    return 5


def put(client: TestClient, key: dict[str, str], **body: Any) -> Any:
    return client.put(ROLLOUT, json=body, headers={"Authorization": key["acme"]})


def served(market: Market, times: int = 400) -> Counter[int]:
    return Counter(market.bundles.resolve("acme/wheel", None, FACTORY).version for _ in range(times))


def test_calls_of_the_bare_name_are_shared_and_a_named_version_is_left_alone(
    market: Market, client: TestClient, key: dict[str, str]
) -> None:
    assert set(served(market)) == {3}  # the newest listed
    answer = put(client, key, stable=1, canary=2, canary_percent=25)
    assert answer.status_code == 200, answer.text
    assert answer.json()["rollout"]["state"] == "active"
    shares = served(market, 2000)
    assert set(shares) == {1, 2}
    assert 350 < shares[2] < 650  # a quarter, ten standard deviations either way
    assert market.bundles.resolve("acme/wheel", "3", FACTORY).version == 3
    assert client.delete(ROLLOUT, headers={"Authorization": key["acme"]}).status_code == 200
    assert set(served(market)) == {3}
    assert client.get(ROLLOUT, headers={"Authorization": key["acme"]}).json()["rollout"] is None


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"stable": 1}, 400, "ROLLOUT_INVALID"),
        ({"stable": 1, "canary": 1, "canary_percent": 5}, 400, "ROLLOUT_INVALID"),
        ({"stable": 1, "canary": 2}, 400, "ROLLOUT_INVALID"),
        ({"stable": 1, "shadow": 2, "canary_percent": 5}, 400, "ROLLOUT_INVALID"),
        ({"stable": 1, "canary": 2, "canary_percent": 101}, 400, "REQUEST_INVALID"),
        ({"stable": 1, "canary": 9, "canary_percent": 5}, 404, "VERSION_NOT_FOUND"),
        ({"stable": 1, "shadow": 4}, 409, "VERSION_NOT_CALLABLE"),
        ({"stable": 1, "shadow": 1}, 400, "ROLLOUT_INVALID"),
        ({"stable": 1, "shadow": 2, "max_decisions_changed_percent": 5}, 400, "ROLLOUT_NOT_COMPARED"),
        ({"stable": 1, "canary": 2, "canary_percent": 5, "max_difference_percent": 5}, 400, "ROLLOUT_NOT_COMPARED"),
        (
            {"stable": 1, "canary": 2, "canary_percent": 5, "shadow": 3, "max_difference_percent": 5},
            400,
            "ROLLOUT_NOT_COMPARED",
        ),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused_and_changes_nothing(
    market: Market, client: TestClient, key: dict[str, str], body: dict[str, Any], status: int, code: str
) -> None:
    answer = put(client, key, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(served(market)) == {3}


def test_a_rollout_is_the_vendor_s_own_affair(client: TestClient, key: dict[str, str]) -> None:
    headers = {"Authorization": key["other"]}
    for answer in (
        client.put(ROLLOUT, json={"stable": 1, "shadow": 2}, headers=headers),
        client.get(ROLLOUT, headers=headers),
        client.delete(ROLLOUT, headers=headers),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "NOT_YOUR_MODEL")


def test_a_withdrawn_version_leaves_the_traffic(market: Market, client: TestClient, key: dict[str, str]) -> None:
    assert put(client, key, stable=1, canary=2, canary_percent=50).status_code == 200
    headers = {"Authorization": key["acme"]}
    assert client.post("/api/v1/models/acme/wheel/versions/2/withdraw", headers=headers).status_code == 200
    assert set(served(market)) == {1}
    assert client.post("/api/v1/models/acme/wheel/versions/1/withdraw", headers=headers).status_code == 200
    assert set(served(market)) == {3}


async def call(market: Market, plane: DataPlane, times: int) -> None:
    for seed in range(times):
        with contextlib.suppress(Refusal):
            await plane.infer(FACTORY, market.bundles.resolve("acme/wheel", None, FACTORY), {"x": rows(2, seed=seed)})


async def test_a_canary_that_breaks_is_taken_back_and_the_vendor_is_told(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    async with running_node(tmp_path / "node") as node:
        market.dataplane = node.dataplane
        assert put(client, key, stable=1, canary=3, canary_percent=50).status_code == 200
        await call(market, node.dataplane, 10)
        await asyncio.to_thread(Housekeeping(market).go_round)
        assert set(served(market)) == {1, 3}  # too few calls to judge by
        await call(market, node.dataplane, 120)
        await asyncio.to_thread(Housekeeping(market).go_round)
        assert set(served(market)) == {1}
        headers = {"Authorization": key["acme"]}
        view = client.get(ROLLOUT, headers=headers).json()["rollout"]
        assert view["state"] == "rolled_back"
        assert view["calls"]["1"]["broken"] == 0
        assert view["calls"]["3"]["broken_share"] == 1
        notices = client.get("/api/v1/notices", headers=headers).json()["items"]
        assert [notice["code"] for notice in notices] == ["CANARY_ROLLED_BACK"]
        with reading(market.engine) as session:
            assert session.get_one(Rollout, "lst_acme/wheel").state == "rolled_back"


def about(market: Market, node: Node) -> About:
    """The V2 protocol's own documents over the market's catalogue, in Triton's words."""
    return About(node.dataplane, Ports(admission=node.admission, bundles=market.bundles))


def in_memory(market: Market, node: Node) -> set[int]:
    versions = (market.bundles.resolve("acme/wheel", str(number), OPERATOR) for number in (1, 2, 3))
    return {each.version for each in versions if node.dataplane.residency.peek(each) is not None}


async def test_an_order_by_the_bare_name_is_for_every_version_that_answers_it(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    assert put(client, key, stable=1, canary=2, canary_percent=50, shadow=3).status_code == 200
    async with running_node(tmp_path / "node", triton_compat=True) as node:
        repository = about(market, node)

        async def states() -> dict[str, str]:
            index = repository.index(OPERATOR, await repository.unloaded())
            return {row["version"]: row["state"] for row in index}

        for _ in range(8):  # by chance one of the two would be left out
            await repository.load(OPERATOR, "acme/wheel")
            assert in_memory(market, node) == {1, 2}
            await repository.check_ready(OPERATOR, "acme/wheel", None)
            assert await states() == {"1": "READY", "2": "READY"}
            await repository.unload(OPERATOR, "acme/wheel")
            assert in_memory(market, node) == set()
            with pytest.raises(Refusal, match="MODEL_UNLOADED"):
                await repository.check_ready(OPERATOR, "acme/wheel", None)
            assert await states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        canary = market.bundles.resolve("acme/wheel", "2", OPERATOR)
        await node.dataplane.infer(FACTORY, canary, {"x": rows(2)})  # a call loads what it meets
        for _ in range(8):
            await repository.check_ready(OPERATOR, "acme/wheel", None)
        assert await states() == {"1": "UNAVAILABLE", "2": "READY"}


async def test_a_canary_that_cannot_be_loaded_is_told_and_the_stable_version_is_loaded(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    assert put(client, key, stable=1, canary=2, canary_percent=50).status_code == 200
    (market.bundles.resolve("acme/wheel", "2", OPERATOR).bundle / "model.onnx").write_bytes(b"not a graph")
    async with running_node(tmp_path / "node") as node:
        for _ in range(4):
            with pytest.raises(Refusal):
                await about(market, node).load(OPERATOR, "acme/wheel")
            assert in_memory(market, node) == {1}
        with pytest.raises(Refusal, match="NOT_OWNER"):
            await about(market, node).unload(FACTORY, "acme/wheel")
        assert in_memory(market, node) == {1}


class Beside:
    """`serving.joined.Elsewhere`: another process, here in this one."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane, self.is_up = plane, True

    async def ask(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        return self.ask_now(what, query)

    def ask_now(self, what: str, query: Mapping[str, Any]) -> list[bytes]:
        told = self.plane.joined.told(what, query)
        return [told] if told is not None and self.is_up else []


async def test_a_canary_is_judged_by_what_all_processes_have_seen(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    async with running_node(tmp_path / "one") as one, running_node(tmp_path / "two", epoch=2) as two:
        market.dataplane = one.dataplane
        beside = one.dataplane.joined.elsewhere = Beside(two.dataplane)
        assert put(client, key, stable=1, canary=3, canary_percent=50, shadow=2).status_code == 200
        split = market.bundles.split("acme/wheel")
        assert split is not None
        for node in (one, two):
            for seed in range(FEWEST_CALLS - 5):  # too few for either alone
                for version in (split.stable, split.canary):
                    assert version is not None
                    with contextlib.suppress(Refusal):
                        await node.dataplane.infer(FACTORY, version, {"x": rows(2, seed=seed)})
        headers = {"Authorization": key["acme"]}
        await until(lambda: all(node.dataplane.shadows.report(split.stable) for node in (one, two)))
        await until(lambda: (one.dataplane.joined.comparison_now(split.stable) or {})["runs"] == 2 * FEWEST_CALLS - 10)
        view = client.get(ROLLOUT, headers=headers).json()["rollout"]
        assert [view["calls"][number]["answered"] for number in "13"] == [2 * FEWEST_CALLS - 10, 0]
        assert view["calls"]["3"]["broken"] == 2 * FEWEST_CALLS - 10
        assert view["comparison"]["runs"] == 2 * FEWEST_CALLS - 10
        beside.is_up = False  # what it had counted when it was asked last is not forgotten
        await asyncio.to_thread(Housekeeping(market).go_round)
        assert set(served(market)) == {1}


async def test_a_sound_canary_stays_and_a_shadow_is_compared(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    async with running_node(tmp_path / "node") as node:
        market.dataplane = node.dataplane
        assert put(client, key, stable=1, shadow=2).status_code == 200
        await call(market, node.dataplane, 30)

        def compared() -> Any:
            found = client.get(ROLLOUT, headers={"Authorization": key["acme"]}).json()["rollout"]["comparison"]
            return found if found and found["runs"] == 30 else None

        await until(lambda: node.dataplane.shadows.report(market.bundles.split("acme/wheel").stable)["runs"] == 30)  # type: ignore[union-attr, index]
        assert (await asyncio.to_thread(compared))["decisions_changed_share"] == 0
        assert put(client, key, stable=1, canary=2, canary_percent=50).status_code == 200
        await call(market, node.dataplane, 100)
        await asyncio.to_thread(Housekeeping(market).go_round)
        assert set(served(market)) == {1, 2}


@pytest.mark.parametrize(
    ("bound", "goes_back"),
    [
        ({"max_decisions_changed_percent": 50}, True),
        ({"max_difference_percent": 100}, True),
        ({}, False),  # nobody has said how far it may differ
    ],
)
async def test_a_canary_that_answers_otherwise_goes_back_where_the_vendor_has_set_a_bound(
    market: Market,
    client: TestClient,
    key: dict[str, str],
    turned: int,
    tmp_path: Path,
    bound: dict[str, int],
    goes_back: bool,
) -> None:
    headers = {"Authorization": key["acme"]}
    async with running_node(tmp_path / "node") as node:
        market.dataplane = node.dataplane
        answer = put(client, key, stable=1, canary=turned, canary_percent=10, shadow=turned, **bound)
        assert answer.status_code == 200, answer.text
        split = market.bundles.split("acme/wheel")
        assert split is not None
        assert split.canary is not None
        assert split.canary.shadow is None  # its own calls are not compared with themselves
        await answered_by_both(node.dataplane, split.stable, FEWEST_ROWS - 2)
        await asyncio.to_thread(Housekeeping(market).go_round)
        assert set(served(market)) == {1, turned}  # too few rows to judge by
        await answered_by_both(node.dataplane, split.stable, FEWEST_ROWS)
        await asyncio.to_thread(Housekeeping(market).go_round)
    assert set(served(market)) == ({1} if goes_back else {1, turned})
    view = client.get(ROLLOUT, headers=headers).json()["rollout"]
    assert view["state"] == ("rolled_back" if goes_back else "active")
    assert view["max_decisions_changed_percent"] == bound.get("max_decisions_changed_percent")
    notices = client.get("/api/v1/notices", headers=headers).json()["items"]
    assert [notice["code"] for notice in notices] == ["CANARY_ROLLED_BACK"] * goes_back
    if goes_back:
        assert "% of the rows otherwise" in str(notices[0])


async def test_a_canary_that_answers_alike_stays(
    market: Market, client: TestClient, key: dict[str, str], tmp_path: Path
) -> None:
    bounds = {"max_decisions_changed_percent": 1, "max_difference_percent": 1}
    async with running_node(tmp_path / "node") as node:
        market.dataplane = node.dataplane
        assert put(client, key, stable=1, canary=2, canary_percent=10, shadow=2, **bounds).status_code == 200
        split = market.bundles.split("acme/wheel")
        assert split is not None
        await answered_by_both(node.dataplane, split.stable, FEWEST_ROWS)
        await asyncio.to_thread(Housekeeping(market).go_round)
    assert set(served(market)) == {1, 2}


async def answered_by_both(plane: DataPlane, stable: Any, count: int) -> None:
    """Until so many rows were compared, two a call."""

    def compared() -> int:
        return int((plane.shadows.report(stable) or {"rows": 0})["rows"])

    for seed in range(compared(), count, 2):
        await plane.infer(FACTORY, stable, {"x": rows(2, seed=seed)})
        await until(lambda due=seed + 2: compared() >= due)  # type: ignore[misc]


@given(
    st.builds(Answers, st.integers(0, 1000), st.floats(0, 1), st.floats(0, 10)),
    st.none() | st.integers(1, 100),
    st.none() | st.integers(1, 100),
)
def test_a_canary_goes_back_for_its_answers_only_beyond_a_bound(
    found: Answers, changed: int | None, difference: int | None
) -> None:
    back = decide_rollback_by_answers(found, changed, difference)
    if found.rows < FEWEST_ROWS or (changed is None and difference is None):
        assert not back
    elif (changed is not None and found.decisions_changed == 1) or (
        difference is not None and found.mean_difference >= 1
    ):
        assert back
    elif found.decisions_changed == found.mean_difference == 0:
        assert not back


calls = st.builds(Tally, st.integers(0, 10_000), st.integers(0, 10_000))


@given(stable=calls, canary=calls, percent=st.integers(1, 100))
def test_a_canary_goes_back_only_for_its_own_faults(stable: Tally, canary: Tally, percent: int) -> None:
    back = decide_rollback(stable, canary, percent)
    if canary.broken == 0 or canary.answered + canary.broken < FEWEST_CALLS:
        assert not back
    if back:
        assert canary.rate * 100 >= percent
        assert canary.rate >= 2 * stable.rate
    if canary.rate == 1 and stable.rate == 0 and canary.broken >= FEWEST_CALLS:
        assert back
