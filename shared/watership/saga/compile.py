"""Compiles a `Saga` class to its plan, and refuses one that is written wrong, naming the saga and the step."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from watership.errors import DefinitionError, error_code
from watership.machine.lint import lint
from watership.machine.nodes import (
    BreakerPlan,
    FallbackPlan,
    Node,
    ParallelPlan,
    SleepPlan,
    StepPlan,
    Unit,
    WaitPlan,
)
from watership.machine.plan import Plan
from watership.saga.fallback import Fallback
from watership.saga.flow import Parallel, Sleep, Wait
from watership.saga.independence import dependence
from watership.saga.models import shape_of
from watership.saga.retry import COMPENSATION_RETRY, FORWARD_RETRY, VERIFY_RETRY, RetryPolicy, milliseconds
from watership.saga.spelling import check_spelling
from watership.saga.step import SagaStepHandler, declared_types, has_compensation, has_verification, step_name

Step = type[SagaStepHandler[Any, Any]]
SagaClass = type[Any]  # a subclass of Saga, which itself stands on this module


@dataclasses.dataclass(frozen=True)
class Definition:
    """A saga class, compiled: the plan as data, and the classes that its names stand for in this process.

    ``steps`` has the saga's former steps too: sagas in flight run to their end on the plan that they began with.
    """

    saga: SagaClass
    plan: Plan
    context_type: type[Any]
    steps: dict[str, Step]
    fallbacks: dict[str, Fallback]  # by the name of the primary


def compile_saga(
    saga: SagaClass,
    *,
    compensation_retry: RetryPolicy | None = None,
    default_compensation_retry: RetryPolicy | None = None,
) -> Definition:
    """The saga's plan and classes. Raises `DefinitionError`.

    ``compensation_retry`` beats what the saga and its steps say; ``default_compensation_retry`` stands in for what
    they do not say.
    """
    context = context_type(saga)
    if context is None:
        raise DefinitionError(f"{saga.__name__} does not name its context: write class {saga.__name__}(Saga[Context])")
    plan = Plan(
        saga=saga_name(saga),
        nodes=_compile_nodes(saga, compensation_retry, default_compensation_retry),
        context_schema=shape_of(context).schema(),
        pivot=step_name(saga.pivot) if saga.pivot is not None else None,
        deadline_ms=milliseconds(saga.deadline_s) if saga.deadline_s is not None else None,
    )
    lint(plan.saga, plan.nodes, plan.pivot, plan.deadline_ms)
    steps = {step_name(step): step for step in (*step_types(saga), *saga.former_steps)}
    fallbacks = {step_name(item.step): item for item in _units(saga) if isinstance(item, Fallback)}
    return Definition(saga, plan, context, steps, fallbacks)


def check_class(saga: SagaClass) -> None:
    """What can be told when the class is made: types, contexts, names, the flow. Raises `DefinitionError`."""
    name = saga.__name__
    if not isinstance(saga.steps, list | tuple):
        raise DefinitionError(f"{name}.steps must be a list of step classes, it is a {type(saga.steps).__name__}")
    for index, item in enumerate(saga.steps):
        _check_item(saga, f"{name}.steps[{index}]", item)
    _check_former_steps(saga)
    if saga.pivot is not None:
        _check_pivot(saga)
    if saga.deadline_s is not None:
        _check_seconds(f"{name}.deadline_s", saga.deadline_s)
    pivot = step_name(saga.pivot) if saga.pivot is not None else None
    lint(
        saga_name(saga),
        _compile_nodes(saga, None, None),
        pivot,
        milliseconds(saga.deadline_s) if saga.deadline_s is not None else None,
    )


def context_type(saga: SagaClass) -> type[Any] | None:
    """The context of ``Saga[Context]``; None where a generic subclass leaves it open."""
    for cls in saga.__mro__:
        for base in getattr(cls, "__orig_bases__", ()):
            args = get_args(base)
            if len(args) == 1 and getattr(getattr(base, "__origin__", None), "is_saga", False):
                return None if isinstance(args[0], TypeVar) else args[0]
    return None


def context_of(step: Step, own: type[Any]) -> type[Any]:
    """The context class that a step of a saga on ``own`` gets: the saga's, where the step's fits it."""
    declared = declared_types(step)[0]
    return declared if isinstance(declared, type) and not issubclass(own, declared) else own


def saga_name(saga: SagaClass) -> str:
    """The saga's name on the wire: its ``name``, else its class's."""
    return saga.name or saga.__name__


def step_types(saga: SagaClass) -> Iterator[Step]:
    """Every step class of the saga, a fallback's primary before its stand-in."""
    for item in _units(saga):
        yield from _steps_of(item)


def _units(saga: SagaClass) -> Iterator[Step | Fallback]:
    for item in saga.steps:
        if isinstance(item, Parallel):
            yield from item.steps
        elif not isinstance(item, Sleep | Wait):
            yield item


def _steps_of(item: Step | Fallback) -> tuple[Step, ...]:
    return (item.step, item.fallback) if isinstance(item, Fallback) else (item,)


# --- to data -------------------------------------------------------------------------------------------------------


def _compile_nodes(saga: SagaClass, wins: RetryPolicy | None, stands_in: RetryPolicy | None) -> tuple[Node, ...]:
    default = saga.compensation_retry or stands_in or COMPENSATION_RETRY
    nodes: list[Node] = []
    forward = False  # past the pivot

    def step_plan(step: Step) -> StepPlan:
        return _compile_step(step, wins or step.compensation_retry or default, forward=forward)

    def unit(item: Step | Fallback) -> Unit:
        if isinstance(item, Fallback):
            return _compile_fallback(item, step_plan(item.step), step_plan(item.fallback))
        return step_plan(item)

    for index, item in enumerate(saga.steps):
        if isinstance(item, Parallel):
            nodes.append(ParallelPlan(tuple(unit(member) for member in item.steps)))
        elif isinstance(item, Sleep):
            nodes.append(SleepPlan(item.name or f"sleep-{index + 1}", milliseconds(item.seconds)))
        elif isinstance(item, Wait):
            timeout_ms = milliseconds(item.timeout_s)
            nodes.append(WaitPlan(item.name, item.into, timeout_ms, item.on_timeout, item.reject_if))
        else:
            nodes.append(unit(item))
            forward = forward or item is saga.pivot
    return tuple(nodes)


def _compile_step(step: Step, compensation_retry: RetryPolicy, *, forward: bool) -> StepPlan:
    name = step_name(step)
    retry = step.retry or (FORWARD_RETRY if forward else RetryPolicy(max_attempts=1))
    verify_retry = step.verify_retry or VERIFY_RETRY
    return StepPlan(
        name=name,
        queue=step.queue or name,
        retry=retry.plan(),
        compensation_retry=compensation_retry.plan(),
        timeout_ms=milliseconds(step.timeout_s),
        queue_within_ms=milliseconds(step.queue_within_s),
        compensable=has_compensation(step),
        verify_retry=verify_retry.plan() if has_verification(step) else None,
        rerun=step.rerun,
    )


def _compile_fallback(item: Fallback, primary: StepPlan, fallback: StepPlan) -> FallbackPlan:
    breaker = None
    if item.circuit_breaker is not None:
        settings = item.circuit_breaker.settings
        breaker = BreakerPlan(settings.fail_max, settings.timeout_duration_s, tuple(settings.exclude))
    codes = tuple(error_code(error) for error in item.failure_exceptions)
    return FallbackPlan(primary=primary, fallback=fallback, failure_codes=codes, breaker=breaker)


# --- checks --------------------------------------------------------------------------------------------------------


def _check_item(saga: SagaClass, where: str, item: object) -> None:
    if isinstance(item, Parallel):
        _check_parallel(saga, where, item)
    elif isinstance(item, Sleep):
        _check_seconds(f"{where}: Sleep's seconds", item.seconds)
    elif isinstance(item, Wait):
        _check_wait(saga, where, item)
    else:
        _check_unit(saga, where, item)


def _check_parallel(saga: SagaClass, where: str, group: Parallel) -> None:
    for place, member in enumerate(group.steps):
        if isinstance(member, Parallel | Sleep | Wait):
            raise DefinitionError(
                f"{where}: a Parallel holds steps and Fallbacks, not a {type(member).__name__}: put it before or after"
            )
        _check_unit(saga, f"{where}.steps[{place}]", member)
    depends = dependence([_steps_of(member) for member in group.steps])
    if depends is not None:
        raise DefinitionError(
            f"{where}: the members of a Parallel must be independent, and {depends}: give each a field of its own, or "
            f"let one come after the other"
        )


def _check_wait(saga: SagaClass, where: str, wait: Wait) -> None:
    _check_seconds(f"{where}: Wait {wait.name}: timeout_s", wait.timeout_s)
    context = context_type(saga)
    if wait.into is not None and isinstance(context, type) and wait.into not in shape_of(context).fields:
        raise DefinitionError(f"{where}: Wait {wait.name}: {context.__name__} has no field {wait.into!r} for its data")
    if wait.into is None or wait.reject_if is None or not isinstance(context, type):
        return
    fields, field = shape_of(context).fields_of(wait.into), wait.reject_if[0]
    if fields and field not in fields:
        raise DefinitionError(
            f"{where}: Wait {wait.name}: reject_if looks at {field!r}, and what goes into {context.__name__}.{wait.into} "
            f"has no such field; it has {', '.join(sorted(fields))}"
        )


def _check_former_steps(saga: SagaClass) -> None:
    current = {step_name(step) for step in step_types(saga)}
    for index, step in enumerate(saga.former_steps):
        where = f"{saga.__name__}.former_steps[{index}]"
        _check_step(saga, where, step)
        if step_name(step) in current:
            raise DefinitionError(f"{where}: {step_name(step)} is one of its steps: list it in one place")


def _check_pivot(saga: SagaClass) -> None:
    items: Sequence[object] = saga.steps
    if saga.pivot not in items:
        found = "a class in a Parallel or a Fallback" if saga.pivot in list(step_types(saga)) else repr(saga.pivot)
        raise DefinitionError(
            f"{saga.__name__}.pivot must be one of its steps, and stand there by itself; it is {found}"
        )


def _check_seconds(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DefinitionError(f"{what} must be a number of seconds, it is {value!r}")


def _check_unit(saga: SagaClass, where: str, item: object) -> None:
    if isinstance(item, Fallback):
        _check_step(saga, f"{where}.step", item.step)
        _check_step(saga, f"{where}.fallback", item.fallback)
        return
    _check_step(saga, where, item)


def _check_step(saga: SagaClass, where: str, step: object) -> None:
    if not isinstance(step, type) or not issubclass(step, SagaStepHandler):
        what = f"the class {step.__name__}" if isinstance(step, type) else f"a {type(step).__name__}"
        raise DefinitionError(
            f"{where} must be a SagaStepHandler class, a Fallback, a Parallel, a Sleep or a Wait, it is {what}"
        )
    check_spelling(where, step, SagaStepHandler)
    _check_methods(where, step)
    wanted, given = context_type(saga), declared_types(step)[0]
    if wanted is None or not isinstance(wanted, type) or not isinstance(given, type):
        return
    if not issubclass(wanted, given):
        raise DefinitionError(
            f"{where}: step {step_name(step)} takes the context {given.__name__}, "
            f"but {saga.__name__} runs on {wanted.__name__}"
        )


def _check_methods(where: str, step: Step) -> None:
    name = step_name(step)
    if inspect.isabstract(step):
        missing = ", ".join(sorted(step.__abstractmethods__))
        raise DefinitionError(f"{where}: step {name} does not define {missing}")
    for method in (step.act, step.compensate, step.verify):
        # A decorator may wrap a coroutine function in a plain one: only a plain function as written is surely wrong.
        plain = inspect.isfunction(method) and not inspect.iscoroutinefunction(method)
        if plain and not hasattr(method, "__wrapped__"):
            raise DefinitionError(f"{where}: {name}.{method.__name__} must be `async def`")
    for setting in ("timeout_s", "queue_within_s"):
        _check_seconds(f"{where}: {name}.{setting}", getattr(step, setting))
    errors = step.unknown_errors
    if not isinstance(errors, tuple) or not all(isinstance(error, type) for error in errors):
        raise DefinitionError(f"{where}: {name}.unknown_errors must be a tuple of exception classes, it is {errors!r}")
