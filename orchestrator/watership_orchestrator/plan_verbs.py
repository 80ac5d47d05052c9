"""The admin queue's verbs about plans: which there are, one of them whole, and which one foreign starts get."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from watership.errors import InvalidPayload, OperationRefused
from watership.messages import AdminAnswer, AdminRequest, AdminVerb
from watership.saga.storage.plan_records import choose_plan, list_plans, show_plan
from watership.saga.storage.queries import PostgresQueries

OF_PLANS = frozenset({AdminVerb.PLANS_LIST, AdminVerb.PLANS_SHOW, AdminVerb.PLANS_USE})
DRIVERS = ("orchestrator",)  # an embedded saga is its own process's affair


async def answer_about_plans(database: AsyncEngine, namespace: str, request: AdminRequest) -> AdminAnswer:
    """Answers one of them."""
    try:
        if request.verb is AdminVerb.PLANS_LIST:
            async with database.connect() as connection:
                return AdminAnswer(data=await list_plans(connection, namespace, DRIVERS, request.limit))
        if request.verb is AdminVerb.PLANS_SHOW:
            async with database.connect() as connection:
                return AdminAnswer(data=await show_plan(connection, namespace, DRIVERS, request.plan or ""))
        if request.saga is None:
            raise InvalidPayload(f"the verb {request.verb} needs a saga's name")
        async with database.begin() as connection:
            now = PostgresQueries(namespace).now
            hand = {"actor": request.actor or "unknown", "reason": request.reason}
            return AdminAnswer(
                data=await choose_plan(connection, namespace, request.saga, request.plan, now=now, **hand)
            )
    except (OperationRefused, InvalidPayload) as error:
        return AdminAnswer(code=error.code, error=str(error))
