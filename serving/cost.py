"""What a run will take, by measurement: decides whether it may stay on the event loop.

The prior is the bundle's cost model (latency = a·rows + b, measured at inspection on another machine perhaps); each run
refines an average for its size class, a power of two of input elements, because sequence length costs as rows do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model_store.graph_outline import read_outline
from model_store.manifest import CostModel

if TYPE_CHECKING:
    import onnx

WEIGHT_SLOWER, WEIGHT_FASTER = 0.1, 0.5  # of the newest run in the moving average; a first run is always a slow one
WEIGHT_QUEUED = 0.1
OUTLIER = 8.0
GAIN = 0.95  # what a row must cost of what it did, for twice as many to run together
ASK_AGAIN = 64
PRIOR_SAFETY = 3.0  # another machine measured it
MAX_INLINE_FILE_BYTES = 20 << 20
# Operators whose work or output does not follow from the size of the inputs but from their values.
_LOOPS = frozenset({"Loop", "Scan"})
_SIZED_BY: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Tile": (1,),
    "Expand": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "Pad": (1,),
    "OneHot": (1,),
}


class CostEstimate:
    """Milliseconds of one run by size class. Not thread-safe: called on the event loop only."""

    __slots__ = (
        "_asked",
        "_prior_ms",
        "_prior_ms_per_row",
        "classes",
        "inline_allowed",
        "last_ms",
        "queued_ms",
        "queued_runs",
    )

    def __init__(self, prior: CostModel | None, inline_allowed: bool) -> None:
        self._prior_ms = prior.b_ms if prior is not None else 0.0
        self._prior_ms_per_row = prior.a_ms_per_row if prior is not None else -1.0
        self.classes: dict[int, float] = {}
        self._asked = 0
        self.last_ms = 0.0  # of the newest run
        self.queued_ms = 0.0  # for how long a queued call keeps a thread, on the average; 0: none has been run yet
        self.queued_runs = 0
        self.inline_allowed = inline_allowed

    def predict_ms(self, elements: int, rows: int) -> float:
        """Expected duration; infinity where nothing is known. A class not yet seen is taken from the next below it."""
        size = elements.bit_length()
        known = self.classes.get(size)
        if known is not None:
            return known
        below = self.classes.get(size - 1)
        if below is not None:
            return below * 4  # twice the elements; attention is quadratic
        above = self.classes.get(size + 1)
        if above is not None:
            return above
        if self._prior_ms_per_row < 0:
            return float("inf")
        return (self._prior_ms + self._prior_ms_per_row * rows) * PRIOR_SAFETY

    def may_be_within(self, limit_ms: float) -> bool:
        """Whether some input might be run on the event loop: False only where every size seen takes longer."""
        if not self.inline_allowed:
            return False
        return not self.classes or min(self.classes.values()) <= limit_ms

    def rows_together(self, elements: int, rows: int, most: int) -> int:
        """How many rows to run at once, of calls of this size: doubled as long as that has made a row cheaper.

        A convolution that fills the cache gains nothing from company (and loses a third at 8 images), a small network
        an order of magnitude. What has not been tried is tried, and now and then again.
        """
        if not self.classes:
            return most
        self._asked += 1
        again = self._asked % ASK_AGAIN == 0
        while rows * 2 <= most:
            alone = self.classes.get(elements.bit_length())
            joined = self.classes.get((elements * 2).bit_length())
            if alone is None:
                break
            if joined is not None and joined > 2 * GAIN * alone:
                return rows * 2 if again else rows
            rows, elements = rows * 2, elements * 2
            if joined is None:
                break
        return rows

    def record(self, elements: int, took_ms: float, shared: bool = False) -> None:
        """One run of this many input elements took so long. `shared`: with others' rows, so alone at most so long.

        Shared runs count too: a model thought long is queued, the queue joins its calls, and under load it would never
        again be seen to run alone.
        """
        size = elements.bit_length()
        self.last_ms = took_ms
        known = self.classes.get(size)
        if shared and known is not None and took_ms >= known:
            return
        if known is not None:
            # One run that was preempted says nothing; several slow ones in a row do.
            took_ms = min(took_ms, known * OUTLIER)
            took_ms = known + (WEIGHT_FASTER if took_ms < known else WEIGHT_SLOWER) * (took_ms - known)
        self.classes[size] = took_ms

    def record_queued(self, took_ms: float) -> None:
        """A queued call kept a thread so long: its share, where it ran with others."""
        self.queued_runs += 1
        known = self.queued_ms
        if not known:
            self.queued_ms = took_ms
            return
        weight = WEIGHT_FASTER if took_ms < known / 2 else WEIGHT_QUEUED  # half: what was known was a first, slow run
        self.queued_ms = known + weight * (min(took_ms, known * OUTLIER) - known)


def runs_in_bounded_time(model_path: Path) -> bool:
    """Whether the graph's work follows from the size of its inputs alone, so that a measured time can be trusted.

    False for loops, for outputs sized by values (ConstantOfShape of an input …) and for files over 20 MiB (too long to
    look at, and hardly short to run). Reads the file but for its weights: call it off the event loop.
    """
    if model_path.stat().st_size > MAX_INLINE_FILE_BYTES:
        return False
    try:
        model = read_outline(model_path)
    except ValueError:  # ONNX Runtime reads what this does not: then nothing is known of it
        return False
    if len(model.functions) > 0:
        return False  # bodies elsewhere; not worth following for the sake of a few microseconds
    return _bounded(model.graph, frozenset())


def _bounded(graph: onnx.GraphProto, outer: frozenset[str]) -> bool:
    fixed = set(outer) | {tensor.name for tensor in graph.initializer}
    fixed -= {value.name for value in graph.input}  # an initializer that callers may override is not fixed
    for node in graph.node:
        if node.op_type in _LOOPS:
            return False
        sized_by = _SIZED_BY.get(node.op_type, ())
        names = [node.input[index] for index in sized_by if index < len(node.input) and node.input[index]]
        if any(name not in fixed for name in names):
            return False
        if node.op_type == "Constant" or (node.input and all(name in fixed for name in node.input if name)):
            fixed.update(node.output)
        for attribute in node.attribute:
            bodies = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            if not all(_bounded(body, frozenset(fixed)) for body in bodies):
                return False
    return True
