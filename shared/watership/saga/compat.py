"""Whether code can finish the sagas that are in flight, and run the plans that new ones would get: the judgement, pure.

Plans are data, so a new version of a saga can be compared with those that run before it is deployed. What is compared is
what a worker would be asked for: the steps that a plan may still send, as they are in the code, and the contexts that they
would be given. It must never know where plans and sagas are kept.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from watership.errors import InvalidPayload
from watership.machine.nodes import StepPlan
from watership.machine.outlook import outlook
from watership.machine.plan import Plan
from watership.machine.state import Action, SagaState
from watership.saga.compile import Definition, SagaClass, Step, compile_saga, context_of
from watership.saga.context_fields import dropped, narrowed, newly_required
from watership.saga.models import shape_of
from watership.saga.step import RemoteStep, has_compensation, has_verification, step_source

EMBEDDED, ORCHESTRATOR = "embedded", "orchestrator"
EXAMPLES_MAX = 5


class Kind(StrEnum):
    """What can be wrong."""

    HANDLER_MISSING = "handler_missing"
    SAGA_MISSING = "saga_missing"
    COMPENSATION_GONE = "compensation_gone"
    VERIFICATION_GONE = "verification_gone"
    QUEUE_GONE = "queue_gone"
    CONTEXT_MISFIT = "context_misfit"
    FIELD_REQUIRED = "field_required"
    FIELD_NARROWED = "field_narrowed"


@dataclasses.dataclass(frozen=True, slots=True)
class ServedStep:
    """A step as code has it: its class, the queue that its workers consume, the class that its context is read into."""

    handler: Step
    queue: str
    context: type[Any]


@runtime_checkable
class HasCode(Protocol):
    """What can be compared as it is: a Worker."""

    def code(self, where: str) -> Code:
        """What it serves; ``where`` names it for people."""


@dataclasses.dataclass(frozen=True)
class Code:
    """One worker, or the sagas of one mapper. ``where``: its name for people. ``embeds``: sagas can run in its process."""

    where: str
    served: Mapping[str, ServedStep]
    definitions: Mapping[str, Definition]
    embeds: bool

    @classmethod
    def of_sagas(cls, where: str, sagas: Iterable[SagaClass]) -> Code:
        """Sagas, and so a worker that serves all their steps that are not `Remote`. Raises `DefinitionError`."""
        definitions = {found.plan.saga: found for found in map(compile_saga, sagas)}
        served: dict[str, ServedStep] = {}
        for definition in definitions.values():
            served |= served_by(definition)
        return cls(where, served, definitions, embeds=True)

    @property
    def queues(self) -> frozenset[str]:
        """What its workers consume."""
        return frozenset(step.queue for step in self.served.values())


def served_by(definition: Definition) -> dict[str, ServedStep]:
    """What a process that has this saga runs of it: its steps and its former ones, less those that are elsewhere."""
    return {
        name: ServedStep(step, step.queue or name, context_of(step, definition.context_type))
        for name, step in definition.steps.items()
        if not issubclass(step, RemoteStep)
    }


@dataclasses.dataclass(frozen=True, slots=True)
class LivePlan:
    """A plan that sagas are pinned to, or that new ones would get. ``starts``: why new ones would; None: they would not."""

    plan: Plan
    driver: str
    in_flight: int
    starts: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class InFlight:
    """A saga in flight. ``state`` None: it cannot be read here, since a newer version wrote it."""

    saga_id: uuid.UUID
    driver: str
    plan_hash: str
    context: Mapping[str, Any]
    state: SagaState | None


@dataclasses.dataclass(frozen=True, slots=True)
class Announced:
    """A handler as the last worker that serves it has announced it."""

    step: str
    source: str
    queue: str
    worker: str
    seen_ms_ago: int


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """Something that would not work. ``sagas``: how many of those that were read it touches; ``starts``: new ones too.

    ``examples``: a few of their ids, each with the reason where they have one of their own.
    """

    kind: Kind
    driver: str
    saga: str
    plan_hash: str
    step: str | None
    words: str
    sagas: int
    starts: bool
    examples: tuple[tuple[uuid.UUID, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ComparedPlan:
    """A live plan, and how many of its sagas were read."""

    live: LivePlan
    read: int


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What came of a comparison. ``notes``: what is no fault, and good to know. ``complete``: all sagas were read."""

    plans: tuple[ComparedPlan, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    complete: bool

    @property
    def compatible(self) -> bool:
        """Nothing was found."""
        return not self.findings

    @property
    def in_flight(self) -> int:
        """Sagas in flight, read or not."""
        return sum(plan.live.in_flight for plan in self.plans)

    @property
    def read(self) -> int:
        """Sagas that were read."""
        return sum(plan.read for plan in self.plans)


@dataclasses.dataclass(slots=True)
class _Claim:
    """A possible finding. ``asked``: the commands in question, a saga that may still send one of them is touched."""

    kind: Kind
    step: str | None
    words: str
    asked: frozenset[tuple[str, Action]] = frozenset()
    sagas: int = 0
    examples: list[tuple[uuid.UUID, str]] = dataclasses.field(default_factory=list)

    def touch(self, saga_id: uuid.UUID, reason: str = "") -> None:
        """Counts a saga."""
        self.sagas += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append((saga_id, reason))


@dataclasses.dataclass(slots=True)
class _Subject:
    """A live plan under comparison."""

    live: LivePlan
    handlers: dict[str, list[ServedStep]] = dataclasses.field(default_factory=dict)
    claims: list[_Claim] = dataclasses.field(default_factory=list)
    misfits: dict[type[Any], _Claim] = dataclasses.field(default_factory=dict)
    read: int = 0


def elsewhere(announced: Sequence[Announced], codes: Sequence[Code]) -> dict[str, Announced]:
    """What other services serve, by step. What an older version of the compared code serves goes when that goes."""
    ours = {step_source(step.handler) for code in codes for step in code.served.values()}
    modules = {source.partition(":")[0] for source in ours}
    workers = {handler.worker for handler in announced if handler.source in ours}
    return {
        handler.step: handler
        for handler in announced
        if handler.worker not in workers and handler.source.partition(":")[0] not in modules
    }


class Comparison:
    """Give it every saga in flight, or some of them; then ask for the report."""

    def __init__(self, codes: Sequence[Code], plans: Iterable[LivePlan], elsewhere: Mapping[str, Announced]) -> None:
        self._codes = codes
        self._elsewhere = elsewhere
        self._notes: dict[str, None] = {}  # in their order, each once
        self._subjects: dict[tuple[str, str], _Subject] = {}
        for live in plans:
            subject = self._subjects[live.driver, live.plan.hash] = _Subject(live)
            self._look_at_plan(subject)

    def note(self, sentence: str) -> None:
        """What is no fault, and good to know."""
        self._notes[sentence] = None

    def saga(self, it: InFlight) -> None:
        """Counts a saga in flight where it is touched, and reads its context as its next steps would."""
        subject = self._subjects.get((it.driver, it.plan_hash))
        if subject is None:
            return  # started since the plans were read
        subject.read += 1
        asked = outlook(subject.live.plan, it.state)
        for claim in subject.claims:
            if claim.asked & asked:
                claim.touch(it.saga_id)
        for cls, reason in _misfits(subject, it, asked).items():
            if cls not in subject.misfits:
                words = f"contexts do not fit {cls.__name__}: their sagas would be parked at {_users(subject, cls)}"
                subject.misfits[cls] = _Claim(Kind.CONTEXT_MISFIT, None, words)
            subject.misfits[cls].touch(it.saga_id, reason)

    def report(self, *, complete: bool) -> Report:
        """What was found, by plan. ``complete``: every saga in flight was given; else those that were not may be touched."""
        found: list[Finding] = []
        for subject in self._subjects.values():
            live, unread = subject.live, not complete and subject.read < subject.live.in_flight
            for claim in (*subject.claims, *subject.misfits.values()):
                general = claim.kind is not Kind.CONTEXT_MISFIT  # that one is told by contexts alone
                may_start = general and live.starts is not None
                if claim.sagas or may_start or (general and unread):
                    found.append(
                        Finding(
                            claim.kind,
                            live.driver,
                            live.plan.saga,
                            live.plan.hash,
                            claim.step,
                            claim.words,
                            claim.sagas,
                            may_start,
                            tuple(claim.examples),
                        )
                    )
        plans = tuple(ComparedPlan(subject.live, subject.read) for subject in self._subjects.values())
        return Report(plans, tuple(found), tuple(self._notes), complete)

    # --- a plan

    def _look_at_plan(self, subject: _Subject) -> None:
        live = subject.live
        if live.driver == EMBEDDED and not any(
            code.embeds and live.plan.saga in code.definitions for code in self._codes
        ):
            words = f"no saga {live.plan.saga} is bound here: nobody would take its sagas up"
            subject.claims.append(_Claim(Kind.SAGA_MISSING, None, words, outlook(live.plan, None)))
            return
        for step in live.plan.steps():
            handlers = subject.handlers[step.name] = self._handlers(live, step.name)
            if handlers:
                self._compare_step(subject, step, handlers)
            else:
                self._without_handler(subject, step)
        for cls in dict.fromkeys(handler.context for found in subject.handlers.values() for handler in found):
            self._compare_fields(subject, cls)

    def _handlers(self, live: LivePlan, step: str) -> list[ServedStep]:
        if live.driver == ORCHESTRATOR:
            return [code.served[step] for code in self._codes if step in code.served]
        of_saga = [code.definitions.get(live.plan.saga) for code in self._codes if code.embeds]
        served = [served_by(definition) for definition in of_saga if definition is not None]
        return [steps[step] for steps in served if step in steps]

    def _without_handler(self, subject: _Subject, step: StepPlan) -> None:
        found = self._elsewhere.get(step.name) if subject.live.driver == ORCHESTRATOR else None
        if found is not None:
            self.note(
                f"step {step.name} is served by {found.source}, last seen {found.seen_ms_ago / 1000:.0f} s ago: "
                f"it is not compared here"
            )
            return
        keep = "list its class in `former_steps`"
        if subject.live.driver == ORCHESTRATOR:
            keep += " or in Worker(handlers=...), or let a worker of the old version run until they have ended"
        words = f"nothing serves step {step.name} any more: {keep}"
        subject.claims.append(_Claim(Kind.HANDLER_MISSING, step.name, words, _asks(step, *Action)))

    def _compare_step(self, subject: _Subject, step: StepPlan, handlers: Sequence[ServedStep]) -> None:
        name = step.name
        undo = all(has_compensation(handler.handler) for handler in handlers)
        if step.compensable and not undo:
            words = f"step {name} has no compensation any more: what its act did would stay when the saga is undone"
            subject.claims.append(_Claim(Kind.COMPENSATION_GONE, name, words, _asks(step, Action.COMPENSATE)))
        elif undo and not step.compensable:
            self.note(f"step {name} has a compensation now; sagas on plan {subject.live.plan.hash} never ask for it")
        if step.verify_retry is not None and not all(has_verification(handler.handler) for handler in handlers):
            words = f"step {name} has no `verify` any more: an act of unknown outcome would stay unknown"
            subject.claims.append(_Claim(Kind.VERIFICATION_GONE, name, words, _asks(step, Action.VERIFY)))
        if subject.live.driver == ORCHESTRATOR and not self._consumes(name, step.queue):
            queues = ", ".join(sorted({handler.queue for handler in handlers}))
            words = (
                f"step {name} is served from the queue {queues} now, and nobody who serves it would consume "
                f"{step.queue}: let a worker of the old version run until they have ended"
            )
            subject.claims.append(_Claim(Kind.QUEUE_GONE, name, words, _asks(step, *Action)))

    def _consumes(self, step: str, queue: str) -> bool:
        found = self._elsewhere.get(step)
        here = any(step in code.served and queue in code.queues for code in self._codes)
        return here or (found is not None and found.queue == queue)

    def _compare_fields(self, subject: _Subject, cls: type[Any]) -> None:
        before, now = subject.live.plan.context_schema, shape_of(cls).schema()
        if not before:
            return
        users = _users(subject, cls)
        for name in newly_required(before, now):
            words = f"{cls.__name__} needs the field {name}, which contexts of this plan need not have: {users}"
            subject.claims.append(_Claim(Kind.FIELD_REQUIRED, None, words))
        for name, lost in narrowed(before, now):
            words = f"{cls.__name__}.{name} takes no {lost} any more, and contexts of this plan may have that: {users}"
            subject.claims.append(_Claim(Kind.FIELD_NARROWED, None, words))
        gone = [name for name in dropped(before, now) if self._is_nobodys(subject, name)]
        if gone:
            fields = ", ".join(gone)
            self.note(
                f"{subject.live.plan.saga}: nobody reads {fields} of the context any more: carried along untouched"
            )

    def _is_nobodys(self, subject: _Subject, field: str) -> bool:
        every = [handler for found in subject.handlers.values() for handler in found]
        complete = all(subject.handlers.values())
        return complete and all(field not in shape_of(handler.context).fields for handler in every)


def _asks(step: StepPlan, *actions: Action) -> frozenset[tuple[str, Action]]:
    return frozenset((step.name, action) for action in actions)


def _misfits(subject: _Subject, it: InFlight, asked: Iterable[tuple[str, Action]]) -> dict[type[Any], str]:
    """The classes into which the context that a step would be given cannot be read, and why."""
    found: dict[type[Any], str] = {}
    tried: set[tuple[type[Any], bool]] = set()
    for step, action in sorted(asked):
        state = it.state
        own = state is not None and step in state.steps and state.steps[step].own is not None
        for handler in subject.handlers.get(step, ()):
            if (handler.context, own) in tried or handler.context in found:
                continue
            tried.add((handler.context, own))
            context = state.context_for(step, action) if own and state is not None else it.context
            try:
                shape_of(handler.context).load(context)
            except InvalidPayload as error:
                found[handler.context] = str(error)
    return found


def _users(subject: _Subject, cls: type[Any]) -> str:
    """The steps that read their context into a class."""
    steps = [name for name, found in subject.handlers.items() if any(handler.context is cls for handler in found)]
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps)}"
