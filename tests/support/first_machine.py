"""Sagas as the first machine wrote them: rows, logs and plans of version 0.1, kept as JSON, each at another point of its way.

Nothing here may be written anew by a later version: that version has to take them up as they are.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from watership import Fallback, Response, Saga, SagaContext, SagaMap, SagaStepHandler, StepError
from watership.saga.storage.schema import log_table, plan_table, saga_table

FIRST_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Written:
    """One of them. ``row`` has the columns of its saga's row but those of time and place; ``end``: how it must end."""

    title: str
    plan_hash: str
    plan: str
    row: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def saga_id(self) -> str:
        """Its id."""
        return str(self.row["saga_id"])

    @property
    def end(self) -> str:
        """The status in which it ends once workers answer that all is well."""
        turned = any('"compensation_began"' in entry["changes"] for entry in self.log)
        return "COMPENSATED" if turned else "COMPLETED"

    async def insert(self, connection: AsyncConnection, *, namespace: str, driver: str) -> None:
        """Writes it as that version did."""
        saga_id = sa.Uuid().python_type(self.saga_id)
        place = {"namespace": namespace, "driver": driver, "machine_version": FIRST_VERSION}
        times = {"created_at_ms": self.log[0]["at_ms"], "updated_at_ms": self.log[-1]["at_ms"]}
        row = {**self.row, "saga_id": saga_id, "wake_at_ms": self.row["due_at_ms"], **place, **times}
        await connection.execute(sa.insert(saga_table).values(**row))
        await connection.execute(sa.insert(log_table), [{"saga_id": saga_id, **entry} for entry in self.log])
        known = sa.select(plan_table.c.plan_hash).where(plan_table.c.plan_hash == self.plan_hash)
        if (await connection.execute(known)).first() is None:
            name = json.loads(self.plan)["saga"]
            values = {"plan_hash": self.plan_hash, "saga": name, "plan": self.plan, "registered_at_ms": 1}
            await connection.execute(sa.insert(plan_table).values(namespace=namespace, **values))


def written() -> list[Written]:
    """All of them."""
    text = Path(__file__).with_suffix(".json").read_text()
    names = [field.name for field in dataclasses.fields(Written)]
    return [Written(**{name: found[name] for name in names}) for found in json.loads(text)]


@dataclasses.dataclass
class Order(SagaContext):
    """Their context."""

    order: str
    trail: list[str] = dataclasses.field(default_factory=list)


class Boom(StepError):
    """What their failures were."""

    code = "boom"


class Step(SagaStepHandler[Order, Response]):
    """All goes well from here on."""

    async def act(self, context: Order) -> None:
        """Leaves its name."""
        context.trail.append(type(self).__name__)

    async def compensate(self, context: Order) -> None:
        """Leaves its name again."""
        context.trail.append(f"undo {type(self).__name__}")


class A(Step):
    """The first step of both sagas."""


class B(Step):
    """A step of Line."""


class C(Step):
    """A step of Line."""


class P(Step):
    """The primary of StandIn."""


class F(Step):
    """Its stand-in."""


class Line(Saga[Order]):
    """As it is today; those in flight have plans of their own."""

    steps = [A, B, C]


@dataclasses.dataclass
class OtherOrder(Order):
    """So that a map can tell the two sagas apart."""


class StandIn(Saga[OtherOrder]):
    """As it is today."""

    steps = [A, Fallback(step=P, fallback=F, failure_exceptions=(Boom,))]


def sagas(mapper: SagaMap) -> None:
    """Binds both."""
    mapper.bind(Order, Line)
    mapper.bind(OtherOrder, StandIn)
