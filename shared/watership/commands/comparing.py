"""The code that `watership plans compat` is told to compare, and the database that it is compared with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from watership.commands.loading import load_object
from watership.commands.plan_desk import open_database
from watership.errors import ConfigurationError
from watership.saga.compat import Code, HasCode, Report
from watership.saga.compile import saga_name
from watership.saga.saga import Saga, SagaMap
from watership.settings import Settings


async def compared(settings: Settings, targets: Sequence[str], only: Collection[str], sample: int) -> Report:
    """What came of it. Saga classes alone are compared with sagas of their names. Raises `WatershipError`."""
    found = [load_object(target, what="code", example="orders.app:worker") for target in targets]
    codes = [code_of(target, thing) for target, thing in zip(targets, found, strict=True)]
    if not only and all(_is_saga(thing) for thing in found):
        only = {saga_name(thing) for thing in found}
    async with open_database(settings) as database:
        from watership.saga.storage.live_sagas import compare

        return await compare(database, codes, only=only, sample=sample)


def code_of(target: str, found: Any) -> Code:
    """What is compared of a thing that ``target`` names. Raises `ConfigurationError`, `DefinitionError`."""
    if _is_saga(found):
        return Code.of_sagas(target, [found])
    if not isinstance(found, type) and isinstance(found, HasCode):
        return found.code(target)
    if isinstance(found, SagaMap) or (callable(found) and not isinstance(found, type)):
        sagas = SagaMap.of(found)
        if len(sagas):
            return Code.of_sagas(target, sagas.sagas())
        raise ConfigurationError(f"{target} binds no saga: nothing to compare")
    raise ConfigurationError(
        f"{target} is a {type(found).__name__}: name a Worker, a sagas_mapper function, a SagaMap or a Saga class"
    )


def _is_saga(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Saga)
