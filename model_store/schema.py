"""What every part of a bundle's manifest is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

OipType = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())
