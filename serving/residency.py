"""Which graphs are in memory: loaded lazily, once at a time, within a budget; the least useful leaves first.

A resident in use is never evicted. Those used once only (a scan over the shelf) leave before those used again, and
within each group the longest unused first. glibc gives the memory back only after `malloc_trim` (serving.md).

Loading is of two stages where a model's weights can be mapped (`model_store.mapped`): first mapped, so that the first
call is answered early and a model called now and then holds next to nothing; then, for one that is called again and
again, prepacked in the background and put in the place of the first, while calls go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from model_store.bundle import open_bundle
from model_store.errors import Refusal, Unprocessable
from model_store.runtime import Graph, load_graph, release_memory
from serving.adapters_on_base import StackedAdapter
from serving.errors.node import memory_full
from serving.mapping import Mapper
from serving.ports import ServedVersion
from serving.resident import Resident, estimate_bytes, load_adapter, load_resident, mapped_model
from serving.settings import ServingSettings

_log = logging.getLogger("algomart.residency")
WAIT_FOR_ROOM_S = 10.0
LOADER_THREADS = 2


class _Load:
    __slots__ = ("task", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[Resident]


class Residency:
    """The graphs of one node. Every method runs on the event loop; loading and dropping happen in its own threads."""

    def __init__(
        self,
        settings: ServingSettings,
        load: Callable[[ServedVersion, ServingSettings], Resident] = load_resident,
        fetch: Callable[[ServedVersion], Awaitable[None]] | None = None,
    ) -> None:
        """`fetch`: awaited before a bundle is read, see `serving.ports.BundleSource`."""
        self._settings, self._pins = settings, settings.pins
        self._load_resident = load
        self._fetch = fetch
        self._residents: dict[tuple[str, bool], Resident] = {}
        self._loads: dict[tuple[str, bool], _Load] = {}
        self._room = asyncio.Event()
        self._pool = ThreadPoolExecutor(LOADER_THREADS, "loader")
        self._unloaded: set[tuple[str, bool]] = set()  # by order, and not loaded since
        self._dropping: set[asyncio.Future[None]] = set()
        self._building: set[asyncio.Task[None]] = set()
        self.mapper = Mapper(settings.mapped_folder)
        self._tick = 0  # the order of uses; cheaper than a clock
        self.held_bytes = 0
        self.loads = self.evictions = 0

    def peek(self, served: ServedVersion) -> Resident | None:
        """The resident if it is loaded, marked as used; no reference is taken (for a run that does not await)."""
        resident = self._residents.get((served.digest, served.trusted))
        if resident is not None:
            resident.uses += 1
            self._tick = resident.last_used = self._tick + 1
            if resident.uses == resident.hot_at:
                self._begin_prepacking(resident)
        return resident

    async def acquire(self, served: ServedVersion) -> Resident:
        """Load if need be and take a reference, to be given back with `release`.

        Raises `Unavailable` MEMORY_FULL, and what loading raises (to every caller that waited for it).
        """
        resident = self.peek(served)
        if resident is not None:
            resident.references += 1
            return resident
        key = (served.digest, served.trusted)
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load()
            load.task = asyncio.create_task(self._load(key, served, load))
        load.waiting += 1
        try:
            return await asyncio.shield(load.task)
        except asyncio.CancelledError:
            if load.task.done() and not load.task.cancelled() and load.task.exception() is None:
                self.release(load.task.result())
            else:
                load.waiting -= 1
            raise

    def release(self, resident: Resident) -> None:
        """Give a reference back."""
        resident.references -= 1
        assert resident.references >= 0, "a reference was given back twice"
        if not resident.references:
            self._room.set()

    def evict(self, served: ServedVersion) -> bool:
        """Unload now, with adapters on it that nobody uses; False where it is in use, not loaded, or being loaded."""
        key = (served.digest, served.trusted)
        if key in self._loads:
            return False
        resident = self._residents.get(key)
        for adapter in [each for each in self._residents.values() if each.base is resident and not each.references]:
            if resident is not None:
                self._drop(adapter)
        if resident is not None and resident.references:
            return False
        self._unloaded.add(key)
        if resident is None:
            return False
        self._drop(resident)
        return True

    async def evict_when_idle(self, served: ServedVersion, within_s: float) -> bool:
        """As `evict`, once the calls in hand have ended, those too that it is being loaded for; False where it is in
        use all that time."""
        deadline, key = time.monotonic() + within_s, (served.digest, served.trusted)
        while not self.evict(served) and (key in self._residents or key in self._loads):
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), deadline - time.monotonic())
            except TimeoutError:
                return False
        return True

    def unloaded(self) -> frozenset[tuple[str, bool]]:
        """Digest and trust of what was unloaded by `evict`, and what nothing has loaded since."""
        return frozenset(self._unloaded)

    def was_unloaded(self, served: ServedVersion) -> bool:
        return (served.digest, served.trusted) in self._unloaded

    def forget_unloading(self, served: ServedVersion) -> None:
        """As if it had not been unloaded by order, but left to make room."""
        self._unloaded.discard((served.digest, served.trusted))

    async def has_room_for(self, served: ServedVersion) -> bool:
        """Whether it is loaded, or can be with nobody unloaded. Raises what reading its bundle raises."""
        if (served.digest, served.trusted) in self._residents:
            return True
        if self._fetch is not None:
            await self._fetch(served)
        need = await asyncio.get_running_loop().run_in_executor(self._pool, _estimate, served, self._settings)
        return self.held_bytes + need <= self._settings.memory_budget_bytes

    def set_pinned(self, served: ServedVersion, pinned: bool) -> None:
        """A pinned resident is never evicted to make room."""
        resident = self._residents.get((served.digest, served.trusted))
        if resident is not None:
            resident.pinned = pinned

    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    async def close(self) -> None:
        """Drop everything, in use or not, and wait for it."""
        for load in list(self._loads.values()):
            load.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await load.task
        for resident in self.residents():
            self._drop(resident)
        await self.mapper.close()
        if self._building:
            await asyncio.wait(self._building)
        if self._dropping:
            await asyncio.wait(self._dropping)
        self._pool.shutdown(wait=False)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def _load(self, key: tuple[str, bool], served: ServedVersion, load: _Load) -> Resident:
        loop = asyncio.get_running_loop()
        need = 0
        base: Resident | None = None
        try:
            if served.base is not None and served.base.trusted:
                base = await self.acquire(served.base)  # given back when the adapter is dropped
            if self._fetch is not None:
                await self._fetch(served)
            need = await loop.run_in_executor(self._pool, _estimate, served, self._settings)
            await self._make_room(served, need)
            self.held_bytes += need  # before loading: two loads must not fill the same room
            try:
                if served.base is not None:
                    resident = await loop.run_in_executor(self._pool, load_adapter, served, base, self._settings)
                    if isinstance(resident.runner, StackedAdapter):
                        await self._widen_stacks(served, resident.runs_on, resident.runner)
                else:
                    resident = await loop.run_in_executor(self._pool, self._load_resident, served, self._settings)
            except BaseException:
                self._give_back(need)
                raise
            resident.bytes = need
            resident.pinned |= served.name in self._pins
            resident.references = load.waiting
            resident.uses = 1
            self._tick = resident.last_used = self._tick + 1
            self._residents[key] = resident
            self._unloaded.discard(key)
            self.loads += 1
            if resident.mapped is None:
                self.mapper.want(served)
            return resident
        except BaseException:
            if base is not None:
                self.release(base)
            raise
        finally:
            del self._loads[key]
            self._room.set()  # for who waits to unload it, or for the reference to its base

    def _begin_prepacking(self, resident: Resident) -> None:
        """Where there is room beside all that is loaded: nobody is unloaded for the sake of speed. Else asked later."""
        assert resident.mapped is not None, "only what is mapped becomes hot"
        need = resident.mapped.prepacked_bytes
        if self.held_bytes + need > self._settings.memory_budget_bytes:
            resident.hot_at *= 2
            return
        resident.hot_at = 0
        self.held_bytes += need
        task = asyncio.create_task(self._prepack(resident, need))
        self._building.add(task)
        task.add_done_callback(self._building.discard)

    async def _prepack(self, resident: Resident, need: int) -> None:
        """Build the second stage and put it in the place of the first, unless that was dropped meanwhile."""
        assert resident.mapped is not None, "only what is mapped becomes hot"
        loop = asyncio.get_running_loop()
        try:
            built = await loop.run_in_executor(self._pool, load_graph, resident.mapped.path)
        except Refusal as error:
            _log.warning("%s stays as it was loaded: %s", resident.name, error)
            self._give_back(need)
            return
        if isinstance(resident.graph, Graph):
            box = [resident.graph.adopt(built)]
            self._give_back(resident.bytes)
            resident.bytes, resident.mapped = need, None
        else:
            box = [built]
            self._give_back(need)
        del built
        await loop.run_in_executor(self._pool, _dispose, box)

    def _give_back(self, size: int) -> None:
        self.held_bytes -= size
        self._room.set()

    async def _widen_stacks(self, served: ServedVersion, base: Resident, adapter: StackedAdapter) -> None:
        """The stacks that adapters share are their base's, in bytes too."""
        assert base.slots is not None, "stacked adapters are in a table"
        await self._make_room(served, base.slots.bytes_with(adapter.ranks) - base.slots.bytes)
        before = base.slots.bytes  # others may have widened them meanwhile
        base.slots.reserve(adapter)
        base.bytes += base.slots.bytes - before
        self.held_bytes += base.slots.bytes - before

    async def _make_room(self, served: ServedVersion, need: int) -> None:
        budget = self._settings.memory_budget_bytes
        deadline = time.monotonic() + WAIT_FOR_ROOM_S
        while self.held_bytes + need > budget and self.held_bytes > 0:
            victim = self._choose_victim()
            if victim is not None:
                self._drop(victim)
                continue
            left = deadline - time.monotonic()
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), left)
            except TimeoutError:
                raise memory_full(served.name) from None
        if need > budget:
            raise memory_full(served.name)

    def _choose_victim(self) -> Resident | None:
        idle = [each for each in self._residents.values() if not each.references and not each.pinned]
        return min(idle, key=lambda each: (each.uses > 1, each.last_used), default=None)

    def _drop(self, resident: Resident) -> None:
        del self._residents[(resident.digest, resident.trusted)]
        self._give_back(resident.bytes)
        self.evictions += 1
        base, resident.base = resident.base, None
        if base is not None:
            self.release(base)
        runner, resident.runner, resident.graph = resident.runner, None, None
        box = [runner]
        del runner
        done = asyncio.get_running_loop().run_in_executor(self._pool, _dispose, box)
        self._dropping.add(done)
        done.add_done_callback(self._dropping.discard)


def _estimate(served: ServedVersion, settings: ServingSettings) -> int:
    try:
        if served.base is None:
            return estimate_bytes(open_bundle(served.bundle), served.trusted, mapped_model(served, settings))
        own = estimate_bytes(open_bundle(served.bundle), trusted=True)
        if served.base.trusted:
            return own
        return own + estimate_bytes(open_bundle(served.base.bundle), trusted=False)  # a worker with a graph of its own
    except OSError as error:
        raise _bundle_gone(served) from error


def _dispose(box: list[Any]) -> None:
    """Close and drop in this thread: a destructor of a large session takes milliseconds."""
    runner = box.pop()
    close = getattr(runner, "close", None)
    if close is not None:
        try:
            close()
        except Exception:  # a worker that is gone already is what we wanted
            _log.warning("closing a worker failed", exc_info=True)
    del runner, close
    release_memory()


def _bundle_gone(served: ServedVersion) -> Refusal:
    return Unprocessable(
        "BUNDLE_UNREADABLE",
        zh=f"{served.name} 的模型包无法读取",
        en=f"the bundle of {served.name} cannot be read",
        remedy_zh="请联系平台运营方运行 algomart doctor",
        remedy_en="ask the operator to run algomart doctor",
        field="model",
    )
