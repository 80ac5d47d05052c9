"""What arrives to be judged, a message or a row that stands for one; what it is judged with; and its refusal. Pure."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from watership import codec
from watership.errors import error_lineage
from watership.machine.plan import Plan
from watership.machine.state import SagaState, Status
from watership.messages import AdminRequest, ErrorOnWire, ReplyOutcome, Signal, StartSaga, StepReply

UNREADABLE = (
    "unreadable"  # in the place of a plan's hash: a saga without the context that it was started with never runs
)


class Shelf(StrEnum):
    """The tables whose rows wait to be judged."""

    START = "start"  # written by a client in a transaction of its own
    SIGNAL = "signal"  # came before its saga
    DEAD = "dead"  # what the broker gave up on


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """Names one row that waits to be judged: by its number, a signal by its saga and its own id."""

    shelf: Shelf
    key: int | tuple[uuid.UUID, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """An operator's hand in an arrival (law 12): what it moves is in the log under ``cause``, with who and why."""

    actor: str
    verb: str
    reason: str
    cause: str


@dataclasses.dataclass(slots=True, eq=False)
class Arrival:
    """One thing to decide on. ``message`` None: the reaper's look.

    ``redelivered``: it was delivered to us before. ``in_doubt``: it was judged before, in a transaction of which nobody
    knows whether it was committed. Either way, what follows from it may be on record already, and never sent.
    ``expired``: it speaks for a command that expired, which says something only if its attempt was answered before.
    ``row``: no message brings it again; it stands in this row until the transaction that judges it. ``unreadable``: a
    start that nobody can be told about: why its context, or its plan, cannot be used.
    """

    saga_id: uuid.UUID
    message: StartSaga | StepReply | AdminRequest | Signal | None
    redelivered: bool = False
    reply_to: str | None = None
    traceparent: str | None = None
    message_id: str | None = None
    in_doubt: bool = False
    row: Waiting | None = None
    mark: Mark | None = None
    unreadable: str | None = None
    expired: bool = False

    @property
    def starts_anew(self) -> bool:
        """As far as anybody knows, there is no such saga yet."""
        return isinstance(self.message, StartSaga) and self.row is None and not self.again

    @property
    def again(self) -> bool:
        """It may have been judged before."""
        return self.redelivered or self.in_doubt

    @property
    def must_stand(self) -> bool:
        """A start whose caller has committed long since: it can be refused to nobody, so it is parked for a person."""
        return self.row is not None and self.row.shelf is Shelf.START


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """An arrival that made no difference and must be given back: dead-lettered, with the reason to its sender."""

    arrival: Arrival
    code: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Plans:
    """The plans that a batch needs, looked up before it is judged; and whether a context, or a field, satisfies one's schema.

    ``served``: the steps that some worker has announced of late; None: not known, so no step is taken for abandoned.
    """

    by_hash: dict[str, Plan]
    newest: dict[str, Plan]
    trouble_with: Callable[[Plan, dict[str, Any]], str | None]
    field_trouble: Callable[[Plan, str, Any], str | None]
    served: frozenset[str] | None = None

    def for_start(self, start: StartSaga) -> Plan | None:
        """The plan that a start runs on: the one that it names, else the newest of its saga's name."""
        if start.plan is not None:
            return self.by_hash.get(start.plan)
        return self.newest.get(start.saga)

    def of(self, state: SagaState) -> Plan | None:
        """The plan that a saga is pinned to (law 7), or may be pinned to now.

        Raises LookupError if one that is under way has none: without it, nothing that it did could be undone.
        """
        if state.plan_hash is not None:
            found = self.by_hash.get(state.plan_hash)
            if found is None and state.status in (Status.RUNNING, Status.COMPENSATING):
                raise LookupError(f"saga {state.saga_id}: its plan {state.plan_hash} is not there, or cannot be read")
            return found
        return self.newest.get(state.name)


def within_limits(state: SagaState, reply: StepReply) -> StepReply:
    """A reply whose patch takes the context over its limit: the step may have acted, and its changes cannot be kept."""
    if not reply.patch:
        return reply
    over = codec.over_the_limit(state.context, reply.patch, what=f"saga {reply.saga_id}, step {reply.step}")
    if over is None:
        return reply
    kind = type(over)
    error = ErrorOnWire(
        code=over.code, type_name=kind.__name__, message=str(over), lineage=(over.code, *error_lineage(kind))
    )
    return reply.model_copy(update={"outcome": ReplyOutcome.UNKNOWN, "patch": None, "response": None, "error": error})


def too_large(state: SagaState, field: str, data: Any) -> str | None:
    """Why a signal's data has no room in the context; None: it has."""
    over = codec.over_the_limit(state.context, {field: data}, what=field)
    return str(over) if over is not None else None
