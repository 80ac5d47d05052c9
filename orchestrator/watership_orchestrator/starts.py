"""Starts that clients wrote in transactions of their own: taken up in batches, with the plans that they carry.

Whoever wrote one has committed since, and is told nothing: so none is refused. What cannot be used is parked with the
reason; what conflicts with another saga is a line in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from watership import codec
from watership.errors import DefinitionError, InvalidPayload, LimitExceeded
from watership.machine.plan import Plan
from watership.messages import StartSaga
from watership_orchestrator.arrivals import UNREADABLE, Arrival, Shelf, Waiting
from watership_orchestrator.engine import Engine
from watership_orchestrator.ports import PlanShelf, SagaStore
from watership_orchestrator.records import WaitingStart


class Starts:
    """The starts of one namespace that wait in a table."""

    def __init__(self, store: SagaStore, engine: Engine, plans: PlanShelf) -> None:
        self._store = store
        self._engine = engine
        self._plans = plans

    async def take_once(self, limit: int) -> int:
        """Takes up the oldest; how many that was. Each row goes in the transaction that makes its saga."""
        rows = await self._store.starts(limit)
        if not rows:
            return 0
        refused = await self._keep_plans(rows)
        result = await self._engine.process([arrival_of(row, refused.get(row.start_id)) for row in rows])
        later = [
            arrival.row for arrival in (*result.again, *result.redeliver, *result.newer) if arrival.row is not None
        ]
        if later:  # their ids are locked elsewhere just now; of those that are taken up, it changes nothing
            await self._store.put_off_rows(later)
        return len(rows)

    async def _keep_plans(self, rows: Sequence[WaitingStart]) -> dict[int, str]:
        """Makes the plans known that rows carry; why the plan of a row cannot be used, by its number."""
        hashes = {row.plan_hash for row in rows if row.plan_hash is not None}
        known = (await self._plans.get(hashes, ())).by_hash
        refused: dict[int, str] = {}
        found: dict[str, Plan] = {}
        for row in rows:
            if row.plan is None or row.plan_hash in known or row.plan_hash in found:
                continue
            try:
                plan = self._plans.checked(codec.decode(row.plan.encode(), what="its plan"))
                if plan.hash != row.plan_hash or plan.saga != row.saga:
                    raise DefinitionError(f"it is the plan {plan.hash} of saga {plan.saga}")
                found[plan.hash] = plan
            except (DefinitionError, InvalidPayload, LimitExceeded, ValueError) as error:
                refused[row.start_id] = f"the plan that the start of saga {row.saga} came with cannot be used: {error}"
        if found:
            await self._plans.keep(list(found.values()))
        return refused


def arrival_of(row: WaitingStart, refused: str | None) -> Arrival:
    """The row as the engine judges it. ``refused``: why its plan cannot be used."""
    context, plan = {}, row.plan_hash
    try:
        context = codec.decode(row.context.encode(), what=f"the context of saga {row.saga} {row.saga_id}")
        if not isinstance(context, dict):
            raise InvalidPayload(f"the context must be a JSON object, it is a {type(context).__name__}")
    except (InvalidPayload, LimitExceeded) as error:
        context, plan, refused = {}, UNREADABLE, str(error)
    # By hand: what a column can hold, a message may not; it is refused to nobody, so it must be carried as it is.
    start = StartSaga.model_construct(v=1, saga=row.saga, saga_id=row.saga_id, context=context, plan=plan)
    return Arrival(
        row.saga_id,
        start,
        traceparent=row.traceparent,
        row=Waiting(Shelf.START, row.start_id),
        unreadable=refused,
    )
