"""What a server says about itself and its models in the Open Inference Protocol, whatever the transport.

Metadata, configuration, statistics and the repository, as the protocol's own documents: REST sends them as JSON, gRPC
as the messages of the same field names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from model_store.errors import NotFound, Refusal
from model_store.manifest import Manifest, TensorSpec
from model_store.names import path_name
from serving.dataplane import DataPlane
from serving.errors.access import model_unloaded, not_owner, scope_missing
from serving.orders import LOAD, UNLOAD
from serving.ports import Ports, Principal, ServedVersion
from serving.protocols import triton_compat
from serving.protocols.oip_classification import is_batched
from serving.protocols.triton_compat import BareNames
from serving.statistics import Statistics

SERVER = "algomart"
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]


class About:
    """Every document but health. What names a model raises `NotFound` MODEL_NOT_FOUND where the caller sees none."""

    def __init__(self, dataplane: DataPlane, ports: Ports, version: str = "") -> None:
        self._dataplane, self._ports, self._version = dataplane, ports, version
        self._names = BareNames(ports.bundles) if dataplane.settings.triton_compat else None

    def resolve(self, principal: Principal, name: str, selector: str | None) -> ServedVersion:
        """`name` in either spelling; `selector` a number, an alias or None."""
        return self._ports.bundles.resolve(self._full(principal, name), selector, principal)

    def _full(self, principal: Principal, name: str) -> str:
        return name if self._names is None else self._names.full(principal, name)

    def server(self) -> dict[str, Any]:
        """Name, version and the extensions that are offered."""
        name = SERVER if self._names is None else triton_compat.SERVER
        return {"name": name, "version": self._version, "extensions": EXTENSIONS}

    async def check_ready(self, principal: Principal, name: str, selector: str | None) -> None:
        """Every model that there is can be called, so is ready. In Triton's words one that was unloaded is not, until
        it is loaded again, by order or by its next call: raises `NotFound` MODEL_UNLOADED. A bare name is ready while
        any version that answers its calls is."""
        bare = selector in (None, "", "latest")
        found = self._answering(principal, name) if bare else [self.resolve(principal, name, selector)]
        if all(map(self._dataplane.residency.was_unloaded, found)) and await self.unloaded() >= set(map(_key, found)):
            raise model_unloaded(found[0].name)

    async def metadata(self, principal: Principal, name: str, selector: str | None) -> dict[str, Any]:
        """Tensors of one version."""
        served = self.resolve(principal, name, selector)
        document = model_metadata(served, await self._dataplane.manifest_of(served))
        return self._named(principal, served, document)

    async def config(self, principal: Principal, name: str, selector: str | None) -> dict[str, Any]:
        """Triton's configuration of one version."""
        served = self.resolve(principal, name, selector)
        document = model_config(served, await self._dataplane.manifest_of(served))
        return self._named(principal, served, document)

    async def statistics(self, principal: Principal, name: str, selector: str | None) -> dict[str, Any]:
        """`{"model_stats": […]}`: the version named; with none, the latest and what else was called and may be seen."""
        served = self.resolve(principal, name, selector)
        known = await self._dataplane.joined.statistics(served.name)
        versions = {served.version}
        if not selector:
            for version in known.called(served.name):
                with contextlib.suppress(NotFound):
                    versions.add(self.resolve(principal, served.name, str(version)).version)
        told = [known.of(served.name, version).as_triton() for version in sorted(versions)]
        return {"model_stats": [self._named(principal, served, entry) for entry in told]}

    def all_statistics(self, principal: Principal, known: Statistics) -> dict[str, Any]:
        """`{"model_stats": […]}` of every version in traffic that was called, of those that `JoinedFigures.statistics`
        answers. Thousands of models take milliseconds."""
        called = [(each, known.known(each.name, each.version)) for each in self._in_traffic(principal)]
        return {
            "model_stats": [
                self._named(principal, each, found.as_triton()) for each, found in called if found is not None
            ]
        }

    async def unloaded(self) -> frozenset[tuple[str, bool]]:
        """Digest and trust of what is not ready, see `check_ready`."""
        return frozenset() if self._names is None else await self._dataplane.joined.unloaded()

    def index(self, principal: Principal, unloaded: frozenset[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Every visible model, a rollout's stable version and canary each by itself; all are ready but those that
        `unloaded` answers, since one that is not loaded is loaded by its first call. Thousands of models take
        milliseconds."""
        return [
            self._named(
                principal,
                each,
                {"name": path_name(each.name), "version": str(each.version), **_state(_key(each) in unloaded)},
            )
            for each in self._in_traffic(principal)
        ]

    async def load(self, principal: Principal, name: str) -> None:
        """Load what answers calls of the bare name (the latest version; a rollout's stable one and its canary) now, in
        every process. Raises `Forbidden` NOT_OWNER, and as `Orders.give`; what the other version was ordered, stands.
        """
        await self._order(LOAD, principal, name)

    async def unload(self, principal: Principal, name: str) -> None:
        """Drop the same in every process, once its calls in hand have ended. Raises as `load`."""
        await self._order(UNLOAD, principal, name)

    async def _order(self, verb: str, principal: Principal, name: str) -> None:
        found = self._answering(principal, name)
        if principal.organisation != found[0].owner and principal.role != "operator":
            raise not_owner(found[0].name)
        refusals: list[Refusal] = []
        for served in found:
            try:
                await self._dataplane.orders.give(verb, served)
            except Refusal as refusal:  # one version that cannot be had leaves the other as it was ordered
                refusals.append(refusal)
        if refusals:
            raise refusals[0]

    def shown(self, principal: Principal, served: ServedVersion) -> str:
        """The model's name as this caller may write it in a path."""
        return path_name(served.name) if self._names is None else self._names.shown(principal, served.name)

    def _named(self, principal: Principal, served: ServedVersion, document: dict[str, Any]) -> dict[str, Any]:
        return document if self._names is None else document | {"name": self.shown(principal, served)}

    def _in_traffic(self, principal: Principal) -> Iterator[ServedVersion]:
        """Of every visible model what answers calls of its bare name."""
        for served in self._ports.bundles.visible(principal):
            with contextlib.suppress(NotFound):  # gone in between
                yield from self._ports.bundles.answering(served.name, principal)

    def _answering(self, principal: Principal, name: str) -> Sequence[ServedVersion]:
        return self._ports.bundles.answering(self._full(principal, name), principal)


def _key(served: ServedVersion) -> tuple[str, bool]:
    return served.digest, served.trusted


def _state(unloaded: bool) -> dict[str, str]:
    if unloaded:
        return {"state": "UNAVAILABLE", "reason": "unloaded"}
    return {"state": "READY", "reason": ""}


def check_scope(principal: Principal, scope: str) -> None:
    """Raises `Forbidden` SCOPE_MISSING."""
    if scope not in principal.scopes:
        raise scope_missing(scope)


def model_metadata(served: ServedVersion, manifest: Manifest) -> dict[str, Any]:
    """The protocol's model metadata; -1 is a dynamic dimension."""
    return {
        "name": path_name(served.name),
        "versions": [str(served.version)],
        "platform": "onnxruntime_onnx",
        "inputs": [_metadata_of(spec) for spec in manifest.inputs],
        "outputs": [_metadata_of(spec) for spec in manifest.outputs],
    }


def _metadata_of(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": spec.shape}


def model_config(served: ServedVersion, manifest: Manifest) -> dict[str, Any]:
    """What Triton's configuration extension needs to know, in its words. With batching, `dims` omit the batch."""
    batched = is_batched(manifest)
    config: dict[str, Any] = {
        "name": path_name(served.name),
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [served.version]}},
        "max_batch_size": manifest.batching.max_rows if batched else 0,
        "input": [_config_of(spec, batched) | _format_of(spec, manifest) for spec in manifest.inputs],
        "output": [_config_of(spec, batched) for spec in manifest.outputs],
        "default_model_filename": "model.onnx",
        "parameters": {"digest": {"string_value": served.digest}},
    }
    if batched:
        config["dynamic_batching"] = {}
    return config


def _config_of(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    dtype = "STRING" if spec.dtype == "BYTES" else spec.dtype
    return {"name": spec.name, "data_type": f"TYPE_{dtype}", "dims": spec.shape[1:] if batched else spec.shape}


def _format_of(spec: TensorSpec, manifest: Manifest) -> dict[str, str]:
    """How a picture lies in the tensor, where the bundle makes it from one: always channels first."""
    of_pictures = {step.tensor for step in manifest.pre if step.op == "image"}
    return {"format": "FORMAT_NCHW"} if spec.name in of_pictures else {}
