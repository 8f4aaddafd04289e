"""The messages and methods of the gRPC surface, from the descriptors that `make protos` makes of `proto/*.proto`.

They live in a descriptor pool of their own: a client library in the same process (tritonclient, for one) registers
messages of the same names in the default pool, and one name can stand for one file only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
STUBS = Path(__file__).parent / "proto" / "stubs.binpb"


def _read(path: Path) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    return pool


_POOL = _read(STUBS)


def message_class(name: str) -> Any:
    """The class of a message by its full name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service; `streams`: its requests or its answers are streams."""

    name: str
    request: Any
    answer: Any
    streams: bool


def methods_of(service: str) -> list[Method]:
    """Every method of a service by its full name."""
    return [
        Method(
            each.name,
            message_factory.GetMessageClass(each.input_type),
            message_factory.GetMessageClass(each.output_type),
            each.client_streaming or each.server_streaming,
        )
        for each in _POOL.FindServiceByName(service).methods
    ]


ModelInferRequest = message_class("inference.ModelInferRequest")
ModelInferResponse = message_class("inference.ModelInferResponse")
ModelStreamInferResponse = message_class("inference.ModelStreamInferResponse")
