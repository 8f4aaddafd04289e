"""What every JSON body of the market's API has in common: no field is passed over, and a truth value is no number."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A misspelt `monthly_cap_fen` must not mean "no cap", nor `true` one fen."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation in (int, int | None):
            raise PydanticCustomError("int_type", "Input should be a valid integer")
        return value
