"""Choosing for the data plane's port: a factory's samples in, a ranking of the shelf out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from marketplace.adapting.suggestions import suggest
from marketplace.choosing import results
from marketplace.choosing.candidates import Candidate, LeftOut, Wish, consider, truths
from marketplace.choosing.samples import (
    Parsed,
    create_sample_set,
    delete_sample_set,
    load_sample_set,
    purge_expired,
    sample_set_view,
)  # fmt: skip
from marketplace.choosing.tables import Choice, SampleSet
from marketplace.choosing.trial import Trial, TrialAllowance, run_trial
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.ids import new_id
from model_store.errors import BadInput, NotFound, Refusal, TooMany
from serving.ports import Principal

if TYPE_CHECKING:
    from marketplace.market import Market

MAX_CANDIDATES = 24
MAX_RUNNING = 4  # choices of one organisation at once: each holds its samples in memory
MAX_LEFT_OUT_SHOWN = 100
FIELDS = frozenset({"sample_set_id", "task", "family", "models", "columns", "label_column"})
_log = logging.getLogger(__name__)


class MarketChooser:
    """Implements `serving.ports.Chooser`. A choice runs as a task of the event loop; its rows run as trials."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()  # by organisation
        self._allowance = TrialAllowance(market.engine)

    async def create_sample_set(
        self, principal: Principal, *, filename: str, content: bytes, form: Mapping[str, str]
    ) -> dict[str, Any]:
        """`form`: label_column. Raises `BadInput` SAMPLES_COUNT, SAMPLES_UNREADABLE, COLUMN_MISSING; `TooLarge`."""
        settings = self._market.settings
        await asyncio.to_thread(purge_expired, self._market.engine, settings.home, now_ms())
        row = await asyncio.to_thread(
            create_sample_set, self._market.engine, settings.home, principal.organisation,
            filename=filename, content=content, form=form, ttl_hours=settings.sample_ttl_hours,
        )  # fmt: skip
        return sample_set_view(row)

    async def delete_sample_set(self, principal: Principal, sample_set_id: str) -> dict[str, Any]:
        market = self._market
        return await asyncio.to_thread(
            delete_sample_set, market.engine, market.settings.home, principal.organisation, sample_set_id
        )

    async def choose(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a choice and answer it as it stands; poll `get` until its state is done or failed."""
        wish, sample_set_id, label_column = _read_request(request)
        organisation = principal.organisation
        if self._running[organisation] >= MAX_RUNNING:
            raise _running()
        self._running[organisation] += 1
        try:
            choice, work = await self._begin(principal, request, wish, sample_set_id, label_column)
        except BaseException:
            self._ended(organisation)
            raise
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._ended(organisation))
        return _view(choice)

    def _ended(self, organisation: str) -> None:
        self._running[organisation] -= 1
        if not self._running[organisation]:
            del self._running[organisation]

    async def _begin(
        self,
        principal: Principal,
        request: Mapping[str, Any],
        wish: Wish,
        sample_set_id: str,
        label_column: str | None,
    ) -> tuple[Choice, Coroutine[Any, Any, None]]:
        """The choice as a row, and the work that carries it out."""
        samples, parsed = await asyncio.to_thread(
            load_sample_set, self._market.engine, self._market.settings.home, principal.organisation, sample_set_id
        )
        if label_column is not None and parsed.kind == "table" and label_column not in parsed.headings:
            raise _bad("label_column", f"表中没有“{label_column[:60]}”列", f"there is no column {label_column[:60]!r}")
        choice = Choice(
            id=new_id("chs"), organisation_id=principal.organisation, sample_set_id=samples.id, state="running",
            request={key: value for key, value in request.items() if key in FIELDS},
        )  # fmt: skip
        await asyncio.to_thread(self._store, choice)
        return choice, self._carry_out(principal, choice, samples, parsed, wish, label_column or samples.label_column)

    async def get(self, principal: Principal, choice_id: str) -> dict[str, Any]:
        return await asyncio.to_thread(self._get, principal, choice_id)

    async def stop(self) -> None:
        """Cancel what is still running; a choice that a stop cut off reads failed after the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def recover(self) -> int:
        """At start: choices that a crash left running are failed, with the remedy. How many."""
        from sqlmodel import col, select

        with transaction(self._market.engine) as session:
            rows = list(session.exec(select(Choice).where(col(Choice.state).in_(("queued", "running")))))
            for row in rows:
                row.state, row.result = "failed", {"error": _interrupted().as_dict()}
                session.add(row)
        return len(rows)

    # --- the work -----------------------------------------------------------------------------------------------------

    async def _carry_out(
        self, principal: Principal, choice: Choice, samples: SampleSet, parsed: Parsed, wish: Wish, label: str | None
    ) -> None:
        started = time.perf_counter()
        try:
            choice.result = await self._choose(principal, choice, parsed, wish, label)
            choice.result["duration_ms"] = round((time.perf_counter() - started) * 1000)
            choice.state, choice.progress = "done", 1.0
        except asyncio.CancelledError:
            choice.state, choice.result = "failed", {"error": _interrupted().as_dict()}
        except Refusal as refusal:
            choice.state, choice.result = "failed", {"error": refusal.as_dict()}
        except Exception:
            _log.exception("choosing: %s failed", choice.id)
            choice.state, choice.result = "failed", {"error": _interrupted().as_dict()}
        await asyncio.to_thread(self._store, choice)

    async def _choose(
        self, principal: Principal, choice: Choice, parsed: Parsed, wish: Wish, label: str | None
    ) -> dict[str, Any]:
        plane = self._market.dataplane
        assert plane is not None  # the port is only asked by a running data plane
        candidates, left_out = await self._candidates(principal, parsed, wish, label)
        bound = self._market.settings.trial_runs_per_day
        runs = parsed.count * len(candidates)
        await asyncio.to_thread(self._allowance.take, principal.organisation, runs, bound)
        tried: dict[str, tuple[Candidate, Trial]] = {}
        for place, candidate in enumerate(candidates):
            try:
                tried[results.key_of(candidate)] = candidate, await run_trial(plane, principal, candidate)
            except Refusal as refusal:
                self._allowance.give_back(principal.organisation, parsed.count)
                served = candidate.served
                left_out.append(LeftOut(served.name, served.version, "RUN_FAILED", f"{refusal.code}: {refusal.en}"))
            choice.progress = (place + 1) / (len(candidates) + 1)
            await asyncio.to_thread(self._store, choice)
        return await asyncio.to_thread(self._conclude, principal, parsed, tried, left_out, label)

    async def _candidates(
        self, principal: Principal, parsed: Parsed, wish: Wish, label: str | None
    ) -> tuple[list[Candidate], list[LeftOut]]:
        plane = self._market.dataplane
        assert plane is not None
        candidates: list[Candidate] = []
        left_out: list[LeftOut] = []
        for served in self._market.bundles.visible(principal):
            manifest = await plane.manifest_of(served)
            found = await asyncio.to_thread(consider, served, manifest, parsed, label, wish)
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                candidates.append(found)
        if len(candidates) > MAX_CANDIDATES:
            raise _bad(
                "models",
                f"有 {len(candidates)} 个候选模型, 最多 {MAX_CANDIDATES} 个; 请指定 task、family 或 models",
                f"{len(candidates)} models qualify, at most {MAX_CANDIDATES} are run: say task, family or models",
            )
        return candidates, left_out

    def _conclude(
        self,
        principal: Principal,
        parsed: Parsed,
        tried: dict[str, tuple[Candidate, Trial]],
        left_out: list[LeftOut],
        label: str | None,
    ) -> dict[str, Any]:
        truth = truths(parsed, label)
        rankings = results.rank_labelled(tried, truth) if truth is not None and tried else []
        unlabelled = results.describe_unlabelled(tried) if truth is None else {}
        standings = {row.key: row for ranking in rankings for row in ranking.standings}
        order = list(standings) or sorted(tried)
        with reading(self._market.engine) as session:
            rows = [
                results.candidate_view(session, principal.organisation, *tried[key], standings.get(key))
                | unlabelled.get(key, {})
                for key in order
            ]
        return {
            "labelled": truth is not None,
            "label_column": label,
            "rows": parsed.count,
            "rankings": [
                {
                    "metric": ranking.metric,
                    "higher_is_better": ranking.higher_is_better,
                    "rows": ranking.rows,
                    "clear_winner": ranking.clear_winner,
                    "best": ranking.standings[0].key if ranking.standings else None,
                    "order": [row.key for row in ranking.standings],
                }
                for ranking in rankings
            ],
            "candidates": rows,
            "adapt_first": suggest([tried[key][0].manifest for key in order], parsed.count, truth is not None),
            "left_out": [item.as_dict() for item in left_out if item.reason != "NOT_ASKED"][:MAX_LEFT_OUT_SHOWN],
        }

    def _store(self, choice: Choice) -> None:
        with transaction(self._market.engine) as session:
            session.merge(choice)

    def _get(self, principal: Principal, choice_id: str) -> dict[str, Any]:
        with reading(self._market.engine) as session:
            row = session.get(Choice, choice_id)
        if row is None or row.organisation_id != principal.organisation:
            raise NotFound(
                "CHOICE_NOT_FOUND",
                zh=f"没有选型记录 {choice_id[:60]}",
                en=f"there is no choice {choice_id[:60]!r}",
                remedy_zh="请重新发起选型",
                remedy_en="start a new one with POST /v1/choose",
                field="id",
            )
        return _view(row)


def _read_request(request: Mapping[str, Any]) -> tuple[Wish, str, str | None]:
    for name in request:
        if name not in FIELDS:
            raise _bad(
                str(name)[:60], f"未知字段“{str(name)[:60]}”", f"{str(name)[:60]!r} is not a field of this request"
            )
    texts: dict[str, str | None] = {}
    for name in ("sample_set_id", "task", "family", "label_column"):
        value = request.get(name)
        if value is not None and not isinstance(value, str):
            raise _bad(name, f"{name} 须为字符串", f"{name} must be a string")
        texts[name] = value or None
    if texts["sample_set_id"] is None:
        raise _bad(
            "sample_set_id", "缺少 sample_set_id; 请先上传样本", "sample_set_id is missing: upload samples first"
        )
    models, columns = request.get("models") or [], request.get("columns") or {}
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise _bad("models", "models 须为模型名称列表", "models must be a list of names")
    if not isinstance(columns, Mapping) or not all(isinstance(heading, str) for heading in columns.values()):
        raise _bad("columns", "columns 须为 特征: 列名 的对应", "columns must map feature names to headings")
    wish = Wish(texts["task"], texts["family"], frozenset(models), {str(k): str(v) for k, v in columns.items()})
    return wish, texts["sample_set_id"], texts["label_column"]


def _view(choice: Choice) -> dict[str, Any]:
    return {
        "id": choice.id,
        "state": choice.state,
        "progress": choice.progress,
        "sample_set_id": choice.sample_set_id,
        "request": choice.request,
        "result": choice.result if choice.state == "done" else {},
        "error": choice.result.get("error") if choice.state == "failed" else None,
        "created_at_ms": choice.created_at_ms,
    }


def _bad(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "CHOOSE_REQUEST_INVALID", zh=zh, en=en, field=field,
        remedy_zh=f"可用字段: {', '.join(sorted(FIELDS))}", remedy_en=f"the fields are: {', '.join(sorted(FIELDS))}",
    )  # fmt: skip


def _running() -> Refusal:
    return TooMany(
        "CHOICES_RUNNING",
        zh=f"贵单位已有 {MAX_RUNNING} 个选型在运行",
        en=f"your organisation already has {MAX_RUNNING} choices under way",
        remedy_zh="请等待其中一个结束",
        remedy_en="wait for one to end",
        retry_after_s=5,
    )


def _interrupted() -> Refusal:
    return Refusal(
        "CHOICE_INTERRUPTED",
        zh="选型被中断",
        en="the choice was interrupted",
        remedy_zh="样本仍在, 请重新发起选型",
        remedy_en="the samples are still there: start the choice again",
    )
