"""Versions in traffic: a canary takes a share of the calls of the bare name, a shadow runs beside them unpaid.

A canary that breaks too often, and more often than the stable version beside it, is taken back by the market itself;
and so is one that is its own shadow, where the vendor has said how far its answers may differ and they differ by more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from marketplace.catalogue.tables import Listing, ModelVersion, Rollout
from marketplace.clock import now_ms
from marketplace.organisations import audit, notices
from model_store.errors import BadInput, Conflict, NotFound
from serving.dataplane import DataPlane

FEWEST_CALLS = 20  # of the canary, before it is judged
FEWEST_ROWS = 100  # that both have answered, before the canary's answers are judged
WORSE = 2.0  # a canary breaks at least this many times as often as the stable version


@dataclass(frozen=True, slots=True)
class Tally:
    """Calls of one version since the rollout began: answered, and broken by the version's own fault."""

    answered: int
    broken: int

    @property
    def rate(self) -> float:
        calls = self.answered + self.broken
        return self.broken / calls if calls else 0.0


def decide_rollback(stable: Tally, canary: Tally, max_failure_percent: int) -> bool:
    """Whether a canary goes back: enough calls, too many of them broken, and clearly more than beside it. Pure."""
    enough = canary.answered + canary.broken >= FEWEST_CALLS
    too_often = canary.rate * 100 >= max_failure_percent and canary.broken > 0
    return enough and too_often and canary.rate >= WORSE * stable.rate


@dataclass(frozen=True, slots=True)
class Answers:
    """The same rows, answered by the stable version and by the canary in its shadow: shares of 1."""

    rows: int
    decisions_changed: float
    mean_difference: float  # relative


def decide_rollback_by_answers(
    found: Answers, max_changed_percent: int | None, max_difference_percent: int | None
) -> bool:
    """Whether a canary goes back for what it answers: enough rows, and a bound that the vendor set is reached. Pure."""
    changed = max_changed_percent is not None and found.decisions_changed * 100 >= max_changed_percent
    differs = max_difference_percent is not None and found.mean_difference * 100 >= max_difference_percent
    return found.rows >= FEWEST_ROWS and (changed or differs)


def set_rollout(
    session: Session,
    listing: Listing,
    versions: dict[int, ModelVersion],
    *,
    stable: int,
    canary: int | None,
    canary_percent: int,
    shadow: int | None,
    max_failure_percent: int,
    max_decisions_changed_percent: int | None = None,
    max_difference_percent: int | None = None,
    actor: str,
) -> Rollout:
    """Begin, or replace, the listing's rollout. `versions`: the listing's own, by number.

    Raises `BadInput` ROLLOUT_INVALID, ROLLOUT_NOT_COMPARED, `Conflict` VERSION_NOT_CALLABLE, `NotFound`
    VERSION_NOT_FOUND.
    """
    named = [number for number in (stable, canary, shadow) if number is not None]
    alone, twice = len(named) == 1, stable in (canary, shadow)
    if alone or twice or (canary is None) != (canary_percent == 0):
        raise BadInput(
            "ROLLOUT_INVALID",
            zh="灰度需要一个稳定版本, 以及另一个灰度版本 (比例 1 至 100) 或影子版本",
            en="a rollout has a stable version and another as canary (1 to 100 percent) or as shadow",
            remedy_zh="请检查 stable、canary、canary_percent 与 shadow",
            remedy_en="check stable, canary, canary_percent and shadow",
            field="canary",
        )
    bounds = {
        "max_decisions_changed_percent": max_decisions_changed_percent,
        "max_difference_percent": max_difference_percent,
    }
    if canary is None or canary != shadow:
        _refuse_bounds(bounds)
    _check_versions(listing, versions, named)
    row = session.get(Rollout, listing.id) or Rollout(listing_id=listing.id, stable=stable)
    row.stable, row.canary, row.canary_percent, row.shadow = stable, canary, canary_percent, shadow
    row.max_decisions_changed_percent, row.max_difference_percent = bounds.values()
    row.max_failure_percent, row.state, row.started_at_ms = max_failure_percent, "active", now_ms()
    session.add(row)
    facts = {"stable": stable, "canary": canary, "percent": canary_percent, "shadow": shadow} | bounds
    _record(session, listing, "rollout.set", actor, **facts)
    return row


def _check_versions(listing: Listing, versions: dict[int, ModelVersion], named: list[int]) -> None:
    lawful = ("listed",) if listing.visibility == "public" else ("inspected", "listed")
    for number in named:
        version = versions.get(number)
        if version is None:
            raise NotFound(
                "VERSION_NOT_FOUND",
                zh=f"“{listing.name}”没有版本 {number}",
                en=f"{listing.name} has no version {number}",
                remedy_zh="请在模型页查看现有版本",
                remedy_en="see the model's page for the versions there are",
                field="version",
            )
        if version.state not in lawful:
            raise Conflict(
                "VERSION_NOT_CALLABLE",
                zh=f"版本 {number} 处于“{version.state}”状态, 不能参与灰度",
                en=f"version {number} is {version.state}; a rollout needs versions that callers may run",
                remedy_zh="请先上架该版本",
                remedy_en="have it listed first",
                field="version",
            )


def _refuse_bounds(bounds: dict[str, int | None]) -> None:
    """There is nothing to hold them against unless the canary is compared with the stable version."""
    for field, percent in bounds.items():
        if percent is not None:
            raise BadInput(
                "ROLLOUT_NOT_COMPARED",
                zh=f"设置 {field} 时, 影子版本须与灰度版本相同: 只有影子的结果会与稳定版本比较",
                en=f"{field} needs the canary as its own shadow: only a shadow's answers are compared",
                remedy_zh="请令 shadow 等于 canary, 或去掉该字段",
                remedy_en="set shadow to the canary's number, or leave the field out",
                field=field,
            )


def end_rollout(session: Session, listing: Listing, *, actor: str) -> None:
    """Calls of the bare name get the newest listed version again; `NotFound` ROLLOUT_NOT_FOUND."""
    row = session.get(Rollout, listing.id)
    if row is None:
        raise NotFound(
            "ROLLOUT_NOT_FOUND",
            zh=f"“{listing.name}”没有进行中的灰度",
            en=f"{listing.name} has no rollout",
            remedy_zh="无需操作",
            remedy_en="there is nothing to end",
        )
    session.delete(row)
    _record(session, listing, "rollout.end", actor)


@dataclass(frozen=True, slots=True)
class Why:
    """Why a canary is taken back: for the notice in both languages, and for the audit log."""

    zh: str
    en: str
    facts: Mapping[str, int | None]


def broke(canary: Tally) -> Why:
    zh, en = f"出错率 {canary.rate:.0%}", f"broke in {canary.rate:.0%} of its calls"
    return Why(zh, en, {"broken": canary.broken})


def differs(found: Answers) -> Why:
    """The shares in the audit log are parts of ten thousand."""
    changed, mean = found.decisions_changed, found.mean_difference
    zh = f"与稳定版本相比, {changed:.1%} 的行结论不同, 平均相对差 {mean:.1%}"
    en = f"decided {changed:.1%} of the rows otherwise than the stable version, and differed by {mean:.1%} on average"
    parts = {"decisions_changed_per_10000": round(changed * 10_000), "difference_per_10000": round(mean * 10_000)}
    return Why(zh, en, {"rows": found.rows} | parts)


def roll_back(session: Session, listing: Listing, row: Rollout, why: Why) -> None:
    """The market takes a canary back: the stable version gets every call again, and the vendor is told."""
    row.state = "rolled_back"
    session.add(row)
    _record(session, listing, "rollout.roll_back", "system", canary=row.canary, **why.facts)
    notices.notify(
        session,
        listing.organisation_id,
        "CANARY_ROLLED_BACK",
        zh=f"{listing.name} 的灰度版本 {row.canary} {why.zh}, 已自动退回版本 {row.stable}",
        en=f"the canary {row.canary} of {listing.name} {why.en}; version {row.stable} has all calls again",
        link=f"/vendor/models/{listing.name}",
    )


NOTHING = Tally(0, 0)
Seen = dict[int, Tally]  # by version number


class RolloutWatch:
    """What each version has done since its rollout began, from the counters of the processes behind the port."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[int, dict[str, tuple[Seen, Seen]]]] = {}  # by process: at first, and at last

    def tallies(self, plane: DataPlane, listing: Listing, row: Rollout) -> dict[int, Tally]:
        """By version number. Counters from before the rollout (or before it was looked at first) are left out; what a
        process had counted when it was last asked stays counted after its end. Blocking: not on the event loop."""
        numbers = [number for number in (row.stable, row.canary) if number is not None]
        known = self._began.get(listing.id)
        if known is None or known[0] != row.started_at_ms:
            known = self._began[listing.id] = (row.started_at_ms, {})
        processes = known[1]
        for told in plane.joined.tallies_now(listing.name):
            now = {number: Tally(*told.versions.get(number, (0, 0))) for number in numbers}
            first = {} if told.started_ms > row.started_at_ms else now
            processes[told.process] = (processes.get(told.process, (first, now))[0], now)
        return {number: _since_then(processes.values(), number) for number in numbers}


def _since_then(processes: Iterable[tuple[Seen, Seen]], number: int) -> Tally:
    answered = broken = 0
    for first, last in processes:
        before, now = first.get(number, NOTHING), last.get(number, NOTHING)
        answered, broken = answered + now.answered - before.answered, broken + now.broken - before.broken
    return Tally(answered, broken)


def rollout_view(row: Rollout, tallies: dict[int, Tally], shadow: dict[str, Any] | None) -> dict[str, Any]:
    """A rollout with what has come of it so far, as the API answers it."""
    fields = (
        "stable", "canary", "canary_percent", "shadow", "max_failure_percent", "max_decisions_changed_percent",
        "max_difference_percent", "state", "started_at_ms",
    )  # fmt: skip
    measured = {
        str(number): {"answered": each.answered, "broken": each.broken, "broken_share": round(each.rate, 4)}
        for number, each in tallies.items()
    }
    return {name: getattr(row, name) for name in fields} | {"calls": measured, "comparison": shadow}


def _record(session: Session, listing: Listing, action: str, actor: str, **details: int | None) -> None:
    audit.record(
        session, actor=actor, organisation_id=listing.organisation_id, action=action, subject=listing.name, **details
    )
