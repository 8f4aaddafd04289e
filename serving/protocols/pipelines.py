"""The pipelines of the versions that were called lately: how text and named features become tensors, and back."""

from __future__ import annotations

from collections import OrderedDict

from model_store.bundle import open_bundle
from model_store.processing.pipeline import Pipeline
from serving.dataplane import DataPlane
from serving.ports import ServedVersion

PIPELINES_KEPT = 256


class Pipelines:
    """Least recently made goes first. Used on the event loop; bundles are opened in a thread."""

    def __init__(self, dataplane: DataPlane) -> None:
        self._dataplane = dataplane
        self._kept: OrderedDict[str, Pipeline] = OrderedDict()

    async def of(self, served: ServedVersion) -> Pipeline:
        """The version's own. Raises what opening its bundle raises."""
        found = self._kept.get(served.digest)
        if found is None:
            await self._dataplane.ports.bundles.fetch(served)
            found = await self._dataplane.in_thread(lambda: Pipeline(open_bundle(served.bundle)))
            self._kept[served.digest] = found
            while len(self._kept) > PIPELINES_KEPT:
                self._kept.popitem(last=False)
        return found
