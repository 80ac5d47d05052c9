"""Takes up one saga that a crash interrupted."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from watership.adapters.containers import as_container
from watership.errors import SagaCompensated, SagaConflict, SagaParked
from watership.execution import checked_barrier
from watership.machine import events as e
from watership.machine.state import Status
from watership.saga.compile import compile_saga
from watership.saga.drivers import drivers_for
from watership.saga.job import Job
from watership.saga.pruned import why_gone
from watership.saga.storage.protocol import SagaStorage

if TYPE_CHECKING:
    from watership.saga.saga import Saga


class _User:
    """One call: the store's drives are let go with the last one that uses them."""


async def recover_saga(
    saga: Saga[Any] | type[Saga[Any]],
    saga_id: uuid.UUID,
    context_builder: type[Any] | Callable[[dict[str, Any]], Any],
    container: object | None,
    storage: SagaStorage,
    *,
    barrier: type[Any] | None = None,
) -> None:
    """Brings an interrupted saga to its end, on the plan that it began with.

    A saga that was going forward goes on forward: what is done is not run again. One that was being compensated, or
    is, finishes that and raises `SagaCompensated` (a ``RuntimeError``): it never goes forward again. Somebody else
    who drives it is waited for. A parked saga is retried, with a fresh budget of attempts. ``context_builder`` is the context's class, or makes it from the stored dict.
    ``barrier`` as for `bootstrap`: give it here if it is given there.
    Raises `SagaNotFound`; `SagaParked` if a person is needed; the step's error if it failed during recovery.
    """
    saga_type = saga if isinstance(saga, type) else type(saga)
    definition = compile_saga(saga_type)
    record = await storage.load(saga_id)
    if record is None:
        raise await why_gone(storage, saga_id)
    if record.state.name != definition.plan.saga:
        raise SagaConflict(f"saga {saga_id} is a {record.state.name}, not a {definition.plan.saga}")
    if record.state.status is Status.PENDING:  # its start could not be read: nothing here could go on with it
        reason = record.state.parked_reason or "its plan is not known"
        raise SagaParked(f"saga {saga_id} is parked: {reason}", reason=reason)
    went_back = record.state.status in (Status.COMPENSATING, Status.COMPENSATED, Status.FAILED)
    build = None if isinstance(context_builder, type) else context_builder
    # Whoever calls this for a parked saga is the person that it waits for.
    parked = record.state.parked_reason is not None
    retry = e.RetryRequested("recover_saga", "recover_saga was called for it") if parked else None
    job = Job(definition, as_container(container), build, checked_barrier(barrier, container))
    drivers, user = drivers_for(storage), _User()
    drivers.used_by(user)
    try:
        drive = await drivers.join(job, saga_id, request=retry)
        end = await drive.watch.end()
    finally:
        await drivers.left_by(user)
    error = end.exception(saga_id)
    if error is None:
        return
    if went_back and end.parked_reason is None:
        raise SagaCompensated(
            f"saga {definition.plan.saga} {saga_id} was {record.state.status} when recovery found it: "
            f"its compensation is complete, and it does not go forward again"
        ) from error
    raise error
