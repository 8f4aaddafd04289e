"""Running one candidate over the samples, through `DataPlane.infer` like any call: metered as a trial, free."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Engine

from marketplace.choosing.candidates import Candidate
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading
from marketplace.usage.tables import TrialCount
from model_store.bundle import open_bundle
from model_store.errors import TooMany
from model_store.processing.pipeline import Pipeline
from serving.dataplane import DataPlane
from serving.ports import Principal

TIMED_ROWS = 12
BATCH_ROWS = 32


@dataclass(slots=True)
class Trial:
    """What one candidate answered. `answers` runs beside the samples; latencies are of single-row calls."""

    answers: list[dict[str, Any]]
    latencies_ms: list[float] = field(default_factory=list)
    usage_ids: list[str] = field(default_factory=list)

    @property
    def latency_ms(self) -> dict[str, float]:
        if not self.latencies_ms:
            return {}
        p50, p99 = np.quantile(self.latencies_ms, (0.5, 0.99))
        return {"p50": float(p50), "p99": float(p99), "calls": len(self.latencies_ms)}


async def run_trial(plane: DataPlane, principal: Principal, candidate: Candidate) -> Trial:
    """The first rows one by one (for the latency), the rest in batches where the graph takes batches."""
    pipeline = await asyncio.to_thread(lambda: Pipeline(open_bundle(candidate.served.bundle)))
    batching = candidate.manifest.batching
    size = min(BATCH_ROWS, batching.max_rows) if batching.dynamic else 1
    trial = Trial(answers=[])
    start = 0
    while start < len(candidate.rows):
        single = start < TIMED_ROWS
        chunk = candidate.rows[start : start + (1 if single else size)]
        start += len(chunk)
        tensors = await asyncio.to_thread(pipeline.encode, chunk)
        began = time.perf_counter()
        ran = await plane.infer(principal, candidate.served, tensors, purpose="trial")
        if single and start > 1:  # the first call also loads the model
            trial.latencies_ms.append((time.perf_counter() - began) * 1000)
        trial.usage_ids.append(ran.usage_id)
        trial.answers += await asyncio.to_thread(pipeline.decode, ran.outputs)
    return trial


class TrialAllowance:
    """The free trial rows of each organisation's day: promised before they run, because ingest counts them afterwards.

    From any thread. What an earlier process promised is known by what ingest has counted of it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._day = ""
        self._used: dict[str, int] = {}  # rows of the day by organisation: counted when first asked, then promised

    def take(self, organisation_id: str, runs: int, bound: int) -> None:
        """Promise `runs` rows; `TooMany` TRIALS_USED_UP where the day's free trial rows do not suffice."""
        day = policy_date(now_ms()).isoformat()
        with reading(self._engine) as session:
            row = session.get(TrialCount, (organisation_id, day))
            counted = row.runs if row else 0
        with self._lock:
            if day != self._day:
                self._day, self._used = day, {}
            used = max(counted, self._used.get(organisation_id, 0))
            if used + runs > bound:
                raise _used_up(runs, max(0, bound - used))
            self._used[organisation_id] = used + runs

    def give_back(self, organisation_id: str, runs: int) -> None:
        """Rows that were promised and did not run."""
        with self._lock:
            self._used[organisation_id] = max(0, self._used.get(organisation_id, 0) - runs)


def _used_up(runs: int, left: int) -> TooMany:
    return TooMany(
        "TRIALS_USED_UP",
        zh=f"今日免费试用额度不足: 需要 {runs} 行, 剩余 {left} 行",
        en=f"today's free trials do not suffice: {runs} rows wanted, {left} left",
        remedy_zh="请减少样本或候选模型, 或明天再试",
        remedy_en="send fewer samples or name fewer models, or try again tomorrow",
        retry_after_s=3600,
    )
