"""Plans as operators see them: which are known, how many sagas are in flight on each, and which one foreign starts get.

Statements on a connection that is given, the same on SQLite and Postgres; used by the command line and by the services.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from watership import codec
from watership.errors import OperationRefused
from watership.machine.state import Status
from watership.saga.storage.schema import IS_LOOKED_AT, plan_choice_table, plan_table, saga_table
from watership.saga.storage.views import iso

HASH_CHARS, PREFIX_CHARS_MIN = 32, 4
DRIVERS = ("embedded", "orchestrator")
IN_FLIGHT = tuple(status.value for status in Status if not status.terminal)


def standing_choices(namespace: str) -> sa.Subquery:
    """Of each saga the newest choice, if it is one: a choice that was taken back is none."""
    of = plan_choice_table.c
    newest = sa.select(sa.func.max(of.choice_id)).where(of.namespace == namespace).group_by(of.saga)
    return (
        sa.select(of.saga, of.plan_hash, of.chosen_at_ms, of.actor, of.reason)
        .where(of.choice_id.in_(newest), of.plan_hash.is_not(None))
        .subquery()
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ForeignStarts:
    """The plan that a start gets which names none. ``choice``: an operator's, else it is what was registered last."""

    plan_hash: str
    choice: Mapping[str, Any] | None

    def view(self) -> dict[str, Any]:
        """As JSON data."""
        if self.choice is None:
            return {"plan": self.plan_hash, "why": "newest"}
        return {
            "plan": self.plan_hash,
            "why": "chosen",
            "actor": self.choice["actor"],
            "reason": self.choice["reason"],
            "at": iso(self.choice["chosen_at_ms"]),
        }


def foreign_starts(known: Sequence[tuple[str, int]], choice: Mapping[str, Any] | None) -> ForeignStarts | None:
    """What foreign starts of one saga get. ``known``: its plans, each with when it was first registered."""
    if choice is not None and any(plan_hash == choice["plan_hash"] for plan_hash, _ in known):
        return ForeignStarts(choice["plan_hash"], choice)
    newest = max(known, key=lambda plan: (plan[1], plan[0]), default=None)
    return ForeignStarts(newest[0], None) if newest is not None else None


@dataclasses.dataclass(slots=True)
class KnownSaga:
    """All that is known of the plans of one saga's name. ``in_flight``: counts by plan hash (None: none yet), driver, status."""

    plans: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    choice: Mapping[str, Any] | None = None
    in_flight: Counter[tuple[str | None, str, str]] = dataclasses.field(default_factory=Counter)
    parked: Counter[str | None] = dataclasses.field(default_factory=Counter)

    @property
    def foreign_starts(self) -> ForeignStarts | None:
        """Which plan a start gets that names none."""
        return foreign_starts(self.plans, self.choice)

    def hashes(self) -> list[str]:
        """Every plan, the newest first; last those that sagas name and nobody has registered."""
        known = [plan_hash for plan_hash, _ in sorted(self.plans, key=lambda plan: (-plan[1], plan[0]))]
        named = {plan_hash for plan_hash, _, _ in self.in_flight if plan_hash is not None}
        return known + sorted(named - set(known))

    def line(self, plan_hash: str) -> dict[str, Any]:
        """One plan as JSON data."""
        starts = self.foreign_starts
        counts: dict[str, dict[str, int]] = {}
        for (its, driver, status), count in sorted(self.in_flight.items(), key=str):
            if its == plan_hash:
                counts.setdefault(driver, {})[status] = count
        registered_at_ms = dict(self.plans).get(plan_hash)
        return {
            "plan": plan_hash,
            "registered_at": iso(registered_at_ms) if registered_at_ms is not None else None,
            "in_flight": counts,
            "parked": self.parked[plan_hash],
            "foreign_starts": starts.view() if starts is not None and starts.plan_hash == plan_hash else None,
        }


async def known_sagas(connection: AsyncConnection, namespace: str, drivers: Collection[str]) -> dict[str, KnownSaga]:
    """What there is, by saga name."""
    found: dict[str, KnownSaga] = {}
    plan, saga = plan_table.c, saga_table.c
    rows = await connection.execute(
        sa.select(plan.saga, plan.plan_hash, plan.registered_at_ms).where(plan.namespace == namespace)
    )
    for name, plan_hash, registered_at_ms in rows:
        found.setdefault(name, KnownSaga()).plans.append((plan_hash, registered_at_ms))
    for choice in (await connection.execute(sa.select(standing_choices(namespace)))).mappings():
        found.setdefault(choice["saga"], KnownSaga()).choice = dict(choice)
    counts = (
        sa.select(
            saga.name, saga.plan_hash, saga.driver, saga.status, sa.func.count(), sa.func.count(saga.parked_reason)
        )
        .where(saga.namespace == namespace, saga.driver.in_(drivers), saga.status.in_(IN_FLIGHT), IS_LOOKED_AT)
        .group_by(saga.name, saga.plan_hash, saga.driver, saga.status)
    )
    for name, plan_hash, driver, status, count, parked in await connection.execute(counts):
        known = found.setdefault(name, KnownSaga())
        known.in_flight[plan_hash, driver, status] += count
        known.parked[plan_hash] += parked
    return dict(sorted(found.items()))


async def list_plans(
    connection: AsyncConnection, namespace: str, drivers: Collection[str], limit: int
) -> list[dict[str, Any]]:
    """By saga: its plans, the newest ``limit`` of them and all that are in use; ``left_out``: how many more there are."""
    views = []
    for name, known in (await known_sagas(connection, namespace, drivers)).items():
        lines = [known.line(plan_hash) for plan_hash in known.hashes()]
        shown = [
            line for place, line in enumerate(lines) if place < limit or line["in_flight"] or line["foreign_starts"]
        ]
        starts = known.foreign_starts
        views.append(
            {
                "saga": name,
                "foreign_starts": starts.view() if starts is not None else None,
                "without_plan": sum(count for (its, _, _), count in known.in_flight.items() if its is None),
                "plans": shown,
                "left_out": len(lines) - len(shown),
            }
        )
    return views


async def show_plan(
    connection: AsyncConnection, namespace: str, drivers: Collection[str], prefix: str
) -> dict[str, Any]:
    """One plan whole: its line, and its JSON under ``definition``. Raises `OperationRefused`."""
    plan_hash, name, text = await _find(connection, namespace, prefix)
    known = await known_sagas(connection, namespace, drivers)
    return {"saga": name, **known[name].line(plan_hash), "definition": codec.loads(text)}


async def choose_plan(
    connection: AsyncConnection, namespace: str, saga: str, prefix: str | None, *, actor: str, reason: str, now: Any
) -> dict[str, Any]:
    """From now on foreign starts of ``saga`` get this plan; None: the newest one again. Raises `OperationRefused`.

    ``now``: the database's clock, as an expression (law 9).
    """
    plan_hash = None
    if prefix is not None:
        plan_hash, name, _ = await _find(connection, namespace, prefix)
        if name != saga:
            raise OperationRefused(f"plan {plan_hash} is one of saga {name}, not of {saga}")
    known = (await known_sagas(connection, namespace, ())).get(saga)
    if known is None or not known.plans:
        raise OperationRefused(
            f"no plan of a saga {saga!r} is known in the namespace {namespace}: see `watership plans list`"
        )
    if plan_hash is None and known.choice is None:
        raise OperationRefused(f"no plan of saga {saga} was chosen: its foreign starts get the newest one already")
    values = {"namespace": namespace, "saga": saga, "plan_hash": plan_hash, "chosen_at_ms": now}
    await connection.execute(sa.insert(plan_choice_table).values(**values, actor=actor, reason=reason))
    starts = (await known_sagas(connection, namespace, ()))[saga].foreign_starts
    assert starts is not None, "it has plans"
    return {"saga": saga, "foreign_starts": starts.view()}


async def _find(connection: AsyncConnection, namespace: str, prefix: str) -> tuple[str, str, str]:
    """The one plan whose hash begins so: hash, saga, JSON."""
    of = plan_table.c
    if not PREFIX_CHARS_MIN <= len(prefix) <= HASH_CHARS:
        raise OperationRefused(
            f"a plan is named by its hash, or the beginning of it, {PREFIX_CHARS_MIN} to {HASH_CHARS} hex digits: {prefix!r}"
        )
    query = sa.select(of.plan_hash, of.saga, of.plan).where(of.namespace == namespace)
    query = query.where(of.plan_hash.startswith(prefix.lower(), autoescape=True)).order_by(of.plan_hash).limit(2)
    rows = (await connection.execute(query)).all()
    if not rows:
        raise OperationRefused(f"no plan in the namespace {namespace} has a hash that begins with {prefix}")
    if len(rows) > 1:
        raise OperationRefused(f"several plans begin with {prefix}: {', '.join(row.plan_hash for row in rows)}, ...")
    return rows[0].plan_hash, rows[0].saga, rows[0].plan
