"""Many adapters on one base: the base's graph is in memory once, and each adapter is a few matrices beside it.

Two forms, by what the base's graph takes (`model_store.adapter_sites`). One adapter a run: `AdaptedGraph` runs the base
with its adapter active, and calls for different adapters never share a run. Indexed: `SlotTable` keeps the adapters in
use in stacks that the graph reads, and each row of a run names its slot, so rows of different adapters share a run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_store.adapter_file import read_adapter
from model_store.adapter_sites import INDEX
from model_store.runtime import ActiveAdapter, Graph
from model_store.tensors import NUMPY_OF, Array

SLOTS = 33  # in a table; the first is the base's own, all zeros
MAX_STACK_BYTES = 256 << 20  # of one table: what would make it larger runs by itself


class AdaptedGraph:
    """A base's graph with one adapter active in every run; used as a `Graph`."""

    def __init__(self, base: Graph, path: Path) -> None:
        """Raises `Unprocessable` ADAPTER_LOAD_FAILED."""
        self._base = base
        self._adapter = ActiveAdapter(path)
        self.inputs, self.outputs = base.inputs, base.outputs
        self.check_inputs = base.check_inputs

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """As `Graph.run`."""
        return self._base.run(inputs, outputs, deadline_ms, max_output_bytes, adapter=self._adapter)


class WideAdapter:
    """An adapter of an indexed base that is too large for its table: runs by itself, as a `Graph` does."""

    def __init__(self, base: Graph, stacked: StackedAdapter) -> None:
        self._base = base
        self._bound = {name: tensor[None] for name, tensor in stacked.tensors.items()}  # the index's default is 0
        self.inputs, self.outputs = base.inputs, base.outputs
        self.check_inputs = base.check_inputs

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """As `Graph.run`."""
        return self._base.run(inputs, outputs, deadline_ms, max_output_bytes, bound=self._bound)


class StackedAdapter:
    """One adapter of an indexed base; used as a `Graph`. Runs by itself, or with others through `SlotTable.run`."""

    def __init__(self, table: SlotTable, path: Path, digest: str) -> None:
        """`digest`: of its bundle; two of one digest share a slot. Raises `Unprocessable` ADAPTER_FILE_INVALID."""
        self._table = table
        self.digest = digest
        self.tensors = read_adapter(path)
        sites = table.sites.values()
        self.ranks = {site.name: self.tensors[site.a].shape[1] for site in sites if site.a in self.tensors}
        self.inputs, self.outputs = table.graph.inputs, table.graph.outputs
        self.check_inputs = table.graph.check_inputs

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """As `Graph.run`: every row with this adapter."""
        return self._table.run([(self, 1)], inputs, outputs, deadline_ms, max_output_bytes)


Member = tuple[StackedAdapter | None, int]  # whose rows, and how many; None: the base's own


class _Held(NamedTuple):
    """Stacks that nobody overwrites while they are held, and the slot of each adapter in them."""

    stacks: dict[str, Array]
    slots: dict[str, int]


class SlotTable:
    """Adapters in the slots of the stacks that an indexed graph reads: `A[slots, in, R]`, `B[slots, R, out]` by site.

    Slot 0 is zeros, smaller ranks are padded with zeros. A slot that no run reads may be overwritten in place, the
    longest unused first; R grows with the largest rank seen. Thread-safe; no run waits for a slot.
    """

    def __init__(self, graph: Graph, slots: int = SLOTS) -> None:
        if graph.sites is None or not graph.sites.indexed or slots < 2:
            raise ValueError("a slot table takes an indexed graph and at least one slot beside the base's")
        self.graph = graph
        self.sites = graph.sites.low_rank
        self._lock = threading.Lock()
        self._stacks = self._zeros(dict.fromkeys(self.sites, 0), slots)
        self._ranks = dict.fromkeys(self.sites, 0)
        self._slots = slots
        self._slot_of: dict[str, int] = {}  # by digest, the longest unused first
        self._readers = [0] * slots
        self._free = list(range(slots - 1, 0, -1))

    @property
    def bytes(self) -> int:
        return sum(stack.nbytes for stack in self._stacks.values())

    def bytes_with(self, ranks: Mapping[str, int]) -> int:
        """What the stacks hold where these ranks, by site, are among them."""
        total = 0
        for name, site in self.sites.items():
            rank = max(self._ranks[name], ranks.get(name, 0))
            total += rank * (site.features_in + site.features_out) * NUMPY_OF[site.dtype].itemsize
        return total * self._slots

    def has_room_for(self, adapter: StackedAdapter) -> bool:
        """Whether it may come into the stacks, which would be as wide for every slot then."""
        return self.bytes_with(adapter.ranks) <= MAX_STACK_BYTES

    def reserve(self, adapter: StackedAdapter) -> None:
        """Make the stacks wide enough for this adapter."""
        with self._lock:
            self._widen([adapter])

    def run(
        self,
        members: Sequence[Member],
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        deadline_ms: float | None = None,
        max_output_bytes: int | None = None,
    ) -> dict[str, Array]:
        """One run of rows in the order of `members`, each with its own adapter; as `Graph.run`.

        A single member's adapter goes for every row there is.
        """
        distinct = {adapter.digest: adapter for adapter, _ in members if adapter is not None}
        if not distinct:
            return self.graph.run(inputs, outputs, deadline_ms, max_output_bytes)
        with self._hold(distinct) as held:
            slots = [0 if adapter is None else held.slots[adapter.digest] for adapter, _ in members]
            counts = [1] if len(members) == 1 else [rows for _, rows in members]
            bound = bind(held.stacks, np.repeat(np.array(slots, np.int64), counts))
            return self.graph.run(inputs, outputs, deadline_ms, max_output_bytes, bound=bound)

    @contextmanager
    def _hold(self, adapters: Mapping[str, StackedAdapter]) -> Iterator[_Held]:
        with self._lock:
            taken = self._take(adapters)
            stacks = self._stacks
        if taken is None:  # other runs read too many slots: this one gets stacks of its own
            yield self._own(adapters)
            return
        try:
            yield _Held(stacks, taken)
        finally:
            with self._lock:
                for slot in taken.values():
                    self._readers[slot] -= 1

    # --- slots, under the lock ----------------------------------------------------------------------------------------

    def _take(self, adapters: Mapping[str, StackedAdapter]) -> dict[str, int] | None:
        """A slot for each, counted as read; None (nothing changed) where there are not enough."""
        missing = [digest for digest in adapters if digest not in self._slot_of]
        unread = [
            digest for digest, slot in self._slot_of.items() if not self._readers[slot] and digest not in adapters
        ]
        if len(missing) > len(self._free) + len(unread):
            return None
        self._widen([adapters[digest] for digest in missing])
        for digest in missing:
            slot = self._free.pop() if self._free else self._slot_of.pop(unread.pop(0))
            self._write(self._stacks, slot, adapters[digest])
            self._slot_of[digest] = slot
        taken = {}
        for digest in adapters:
            slot = taken[digest] = self._slot_of[digest] = self._slot_of.pop(digest)  # now the latest used
            self._readers[slot] += 1
        return taken

    def _widen(self, adapters: Sequence[StackedAdapter]) -> None:
        """New stacks where a larger rank comes; runs under way keep reading the old ones."""
        ranks = self._ranks_with(adapters)
        if ranks == self._ranks:
            return
        wide = self._zeros(ranks, self._slots)
        for name, stack in self._stacks.items():
            wide[name][:, : stack.shape[1], : stack.shape[2]] = stack
        self._stacks, self._ranks = wide, ranks

    def _ranks_with(self, adapters: Sequence[StackedAdapter]) -> dict[str, int]:
        found = dict(self._ranks)
        for adapter in adapters:
            found.update({name: max(found[name], rank) for name, rank in adapter.ranks.items()})
        return found

    def _own(self, adapters: Mapping[str, StackedAdapter]) -> _Held:
        with self._lock:
            ranks = self._ranks_with(list(adapters.values()))
        stacks = self._zeros(ranks, 1 + len(adapters))
        for slot, adapter in enumerate(adapters.values(), 1):
            self._write(stacks, slot, adapter)
        return _Held(stacks, {digest: slot for slot, digest in enumerate(adapters, 1)})

    def _zeros(self, ranks: Mapping[str, int], slots: int) -> dict[str, Array]:
        stacks = {}
        for name, site in self.sites.items():
            kind = NUMPY_OF[site.dtype]
            stacks[site.a] = np.zeros((slots, site.features_in, ranks[name]), kind)
            stacks[site.b] = np.zeros((slots, ranks[name], site.features_out), kind)
        return stacks

    @staticmethod
    def _write(stacks: Mapping[str, Array], slot: int, adapter: StackedAdapter) -> None:
        """All of the slot: what was there before must not shine through a smaller rank or a site left out."""
        for name, stack in stacks.items():
            tensor = adapter.tensors.get(name)
            stack[slot] = 0
            if tensor is not None:
                stack[slot, : tensor.shape[0], : tensor.shape[1]] = tensor


def bind(stacks: Mapping[str, Array], index: Array) -> dict[str, Array]:
    """What an indexed graph is fed beside its inputs. `index[rows]`: slots. `IndexError` where one is not there.

    ONNX Runtime takes -1 for the last slot, which is another tenant's.
    """
    slots = min(len(stack) for stack in stacks.values())
    if index.ndim != 1 or not index.size or index.min() < 0 or index.max() >= slots:
        raise IndexError(f"adapter slots {index.tolist()[:8]} of {slots}")
    return {**stacks, INDEX: index}
