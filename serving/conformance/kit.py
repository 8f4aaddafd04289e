"""What a check works with: one server, the kit's models that it serves, and the model that general checks call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from serving.conformance.checks import NotApplicable, expect
from serving.conformance.models import PREFIX, KitModel, TensorInfo, kit_models
from serving.conformance.tensors import BINARY_LENGTH, DTYPES, Array, Output, binary_tensor, json_tensor, outputs_of
from serving.conformance.wire import Exchange, Wire

JSON_HEADERS = {"content-type": "application/json"}
BINARY_HEADERS = {"content-type": "application/octet-stream"}
SUBJECT = "add-sub"
ABSENT = "no-such-model-of-the-conformance-kit"
Sent = tuple[str, str, Array]


class Kit:
    """Remembers the last exchange, so that a failed check can show it.

    `model`: the server's own name of the model for general checks; without it, the kit's add-sub.
    """

    def __init__(self, wire: Wire, model: str | None = None, prefix: str = PREFIX) -> None:
        self.wire, self._prefix = wire, prefix
        self.last: Exchange | None = None
        self.extensions = self._extensions()
        self.models = {each.name: each for each in kit_models()}
        self.served = frozenset(name for name in self.models if self._serves(self.name_of(name)))
        self.subject = model or self.name_of(SUBJECT)
        self.subject_inputs: tuple[TensorInfo, ...] = ()
        self.subject_outputs: tuple[TensorInfo, ...] = ()
        self._learn_subject()

    @property
    def has_subject(self) -> bool:
        """The model for general checks is there, and its metadata can be read."""
        return bool(self.subject_outputs)

    def name_of(self, model: str) -> str:
        """The server's name of a model of the kit."""
        return f"{self._prefix}{model}"

    # --- requests -----------------------------------------------------------------------------------------------------

    def get(self, path: str) -> Exchange:
        return self._kept(self.wire.send("GET", path))

    def post(self, path: str, content: bytes | None, headers: Mapping[str, str] | None = None) -> Exchange:
        return self._kept(self.wire.send("POST", path, content, headers))

    def raw(self, content: bytes, answers: int = 1, end: bool = False) -> list[Exchange]:
        """See `Wire.raw`."""
        found = self.wire.raw(content, answers, end)
        self.last = found[-1]
        return found

    def path(self, name: str, verb: str = "", version: str | None = None) -> str:
        """`v2/models/NAME[/versions/VERSION][/VERB]`, `name` as the server knows it."""
        parts = ["v2", "models", quote(name, safe="")]
        parts += [] if version is None else ["versions", quote(version, safe="")]
        return "/".join([*parts, verb] if verb else parts)

    def post_json(self, name: str, document: Any, version: str | None = None) -> Exchange:
        """An inference request with this body, whatever it is."""
        return self.post(self.path(name, "infer", version), json.dumps(document).encode(), JSON_HEADERS)

    def infer(self, model: str, *tensors: Sent, nested: bool = False, **more: Any) -> Exchange:
        """JSON inference on a model of the kit; `more` are further fields of the request."""
        inputs = [json_tensor(*tensor, nested=nested) for tensor in tensors]
        return self.post_json(self.name_of(model), {"inputs": inputs, **more})

    def infer_binary(self, model: str, *tensors: Sent, **more: Any) -> Exchange:
        """The same with every input as binary data."""
        body, length = binary_request(tensors, **more)
        headers = BINARY_HEADERS | {BINARY_LENGTH: str(length)}
        return self.post(self.path(self.name_of(model), "infer"), body, headers)

    def outputs(self, model: str, *tensors: Sent, **more: Any) -> dict[str, Output]:
        """The outputs of `infer`. Raises `Unmet` where there are none."""
        return outputs_of(self.infer(model, *tensors, **more))

    def is_there(self) -> bool:
        """The server answers at all."""
        return bool(self.wire.send("GET", "v2/health/live").status)

    # --- the model of general checks ----------------------------------------------------------------------------------

    def subject_tensors(self) -> list[Sent]:
        """Zeros (false, empty text) of the smallest shape for every input of the subject."""
        return [(each.name, each.datatype, _zeros(each)) for each in self.subject_inputs]

    def subject_request(self, **more: Any) -> dict[str, Any]:
        return {"inputs": [json_tensor(*tensor) for tensor in self.subject_tensors()], **more}

    def infer_subject(self, **more: Any) -> Exchange:
        """A lawful request to the subject; `more` are further fields of the request."""
        return self.post_json(self.subject, self.subject_request(**more))

    def need_works(self) -> None:
        """Raises `Unmet` where the server no longer answers a lawful request: what was sent before has harmed it."""
        shown, works = self.last, self.infer_subject()
        expect(works.status == 200, f"afterwards a lawful request gets {works.failure or works.status}", works)
        self.last = shown

    # --- discovery ----------------------------------------------------------------------------------------------------

    def _kept(self, exchange: Exchange) -> Exchange:
        self.last = exchange
        return exchange

    def _extensions(self) -> frozenset[str]:
        found = _document(self.get("v2"))
        claimed = found.get("extensions")
        return (
            frozenset(each for each in claimed if isinstance(each, str)) if isinstance(claimed, list) else frozenset()
        )

    def _serves(self, name: str) -> bool:
        return self.get(self.path(name)).status == 200

    def _learn_subject(self) -> None:
        found = _document(self.get(self.path(self.subject)))
        self.subject_inputs = _infos(found.get("inputs"))
        self.subject_outputs = _infos(found.get("outputs"))

    def model(self, name: str) -> KitModel:
        return self.models[name]

    def versions(self) -> list[str]:
        """The subject's versions that may be requested. Raises `NotApplicable` where it lists none."""
        listed = _document(self.get(self.path(self.subject))).get("versions")
        if not isinstance(listed, list) or not listed:
            raise NotApplicable("its metadata lists no versions")
        return [str(each) for each in listed]


def binary_request(tensors: Sequence[Sent], **more: Any) -> tuple[bytes, int]:
    """Body with every tensor as binary data, and the length of its JSON."""
    parts = [binary_tensor(*tensor) for tensor in tensors]
    head = json.dumps({"inputs": [described for described, _ in parts], **more}).encode()
    return head + b"".join(content for _, content in parts), len(head)


def _document(exchange: Exchange) -> dict[str, Any]:
    if exchange.status != 200:
        return {}
    try:
        found = json.loads(exchange.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _infos(tensors: Any) -> tuple[TensorInfo, ...]:
    """What can be read of metadata; what cannot is for the metadata checks to say."""
    if not isinstance(tensors, list):
        return ()
    return tuple(
        TensorInfo(str(each.get("name")), each["datatype"], tuple(each["shape"]))
        for each in tensors
        if isinstance(each, dict)
        and each.get("datatype") in DTYPES
        and isinstance(each.get("shape"), list)
        and all(isinstance(size, int) for size in each["shape"])
    )


def _zeros(info: TensorInfo) -> Array:
    shape = [max(1, size) for size in info.shape]
    if info.datatype == "BYTES":
        array = np.empty(shape, np.object_)
        array[...] = ""
        return array
    return np.zeros(shape, DTYPES[info.datatype])
