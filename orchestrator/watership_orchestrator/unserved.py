"""Steps that no worker announces any more: what is overdue of them is sent again for a while, then parked. Pure.

A step's queue outlives its workers, so the broker takes each sending, and nobody says that it is not served.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from watership.machine.events import StepNotServed
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, SagaState, Status

UNSERVED_MAX = 10  # sendings that nobody answered: about an hour, unless the step is a quick one


def unserved(plan: Plan | None, state: SagaState, served: AbstractSet[str] | None, now_ms: int) -> list[StepNotServed]:
    """What there is to say of a saga's overdue commands. ``served`` None: nobody knows who serves what."""
    if served is None or plan is None or state.parked_reason is not None or state.paused:
        return []
    found = []
    for name, action, it in state.active_actions():
        overdue = it.phase is Phase.AWAITED and it.due_at_ms is not None and it.due_at_ms <= now_ms
        if not overdue or name in served:
            continue
        if action is Action.ACT and (state.status is Status.COMPENSATING or not plan.by_name[name].rerun):
            continue  # it is not sent again: it ends unknown
        sent = it.refusals + 1
        reason = None
        if sent >= UNSERVED_MAX:
            reason = (
                f"no worker serves step {name} any more: none has announced it of late, and its command was sent {sent} "
                f"times; start a worker that has it"
            )
        found.append(StepNotServed(name, action, it.attempt, now_ms, UNSERVED_MAX, redelivered=True, reason=reason))
    return found
