"""Values: dataclasses that nobody changes once they are made. The type checker says so, and not each making of one."""

from __future__ import annotations

import dataclasses
from typing import TypeVar, dataclass_transform

_ValueT = TypeVar("_ValueT")


@dataclass_transform(frozen_default=True)
def value(cls: type[_ValueT]) -> type[_ValueT]:
    """A dataclass with slots, equal by its fields and hashable; frozen for the type checker alone.

    A dataclass that is frozen at run time sets each field through `object.__setattr__`, which takes five times as long,
    and an orchestrator makes a dozen of these for each message.
    """
    return dataclasses.dataclass(slots=True, unsafe_hash=True)(cls)
