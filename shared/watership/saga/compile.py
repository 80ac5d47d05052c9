"""Compiles a `Saga` class to its plan, and refuses one that is written wrong, naming the saga and the step."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from watership.errors import DefinitionError, error_code
from watership.machine.plan import BreakerPlan, FallbackPlan, Node, Plan, StepPlan, lint, lint_names
from watership.saga.fallback import Fallback
from watership.saga.models import shape_of
from watership.saga.retry import COMPENSATION_RETRY, RetryPolicy
from watership.saga.step import SagaStepHandler, declared_types, has_compensation, step_name

Step = type[SagaStepHandler[Any, Any]]
SagaClass = type[Any]  # a subclass of Saga, which itself stands on this module


@dataclasses.dataclass(frozen=True)
class Definition:
    """A saga class, compiled: the plan as data, and the classes that its names stand for in this process."""

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
    default = saga.compensation_retry or default_compensation_retry or COMPENSATION_RETRY

    def compiled(step: Step) -> StepPlan:
        return _compile_step(step, compensation_retry or step.compensation_retry or default)

    nodes: list[Node] = []
    for item in saga.steps:
        if isinstance(item, Fallback):
            nodes.append(_compile_fallback(item, compiled(item.step), compiled(item.fallback)))
        else:
            nodes.append(compiled(item))
    context = context_type(saga)
    if context is None:
        raise DefinitionError(f"{saga.__name__} does not name its context: write class {saga.__name__}(Saga[Context])")
    plan = Plan(saga=saga_name(saga), nodes=tuple(nodes), context_schema=shape_of(context).schema())
    lint(plan)
    steps = {step_name(step): step for step in step_types(saga)}
    fallbacks = {step_name(item.step): item for item in saga.steps if isinstance(item, Fallback)}
    return Definition(saga, plan, context, steps, fallbacks)


def check_class(saga: SagaClass) -> None:
    """What can be told when the class is made: types, contexts, names. Raises `DefinitionError`."""
    name = saga.__name__
    if not isinstance(saga.steps, list | tuple):
        raise DefinitionError(f"{name}.steps must be a list of step classes, it is a {type(saga.steps).__name__}")
    for index, item in enumerate(saga.steps):
        _check_item(saga, f"{name}.steps[{index}]", item)
    lint_names(name, [step_name(step) for step in step_types(saga)])


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
    for item in saga.steps:
        if isinstance(item, Fallback):
            yield item.step
            yield item.fallback
        else:
            yield item


def _compile_step(step: Step, compensation_retry: RetryPolicy) -> StepPlan:
    name = step_name(step)
    retry = step.retry or RetryPolicy(max_attempts=1)
    return StepPlan(
        name=name,
        queue=step.queue or name,
        retry=retry.plan(),
        compensation_retry=compensation_retry.plan(),
        timeout_ms=round(step.timeout_s * 1000),
        queue_within_ms=round(step.queue_within_s * 1000),
        compensable=has_compensation(step),
    )


def _compile_fallback(item: Fallback, primary: StepPlan, fallback: StepPlan) -> FallbackPlan:
    breaker = None
    if item.circuit_breaker is not None:
        settings = item.circuit_breaker.settings
        breaker = BreakerPlan(settings.fail_max, settings.timeout_duration_s, tuple(settings.exclude))
    codes = tuple(error_code(error) for error in item.failure_exceptions)
    return FallbackPlan(primary=primary, fallback=fallback, failure_codes=codes, breaker=breaker)


def _check_item(saga: SagaClass, where: str, item: object) -> None:
    if isinstance(item, Fallback):
        _check_step(saga, f"{where}.step", item.step)
        _check_step(saga, f"{where}.fallback", item.fallback)
        return
    _check_step(saga, where, item)


def _check_step(saga: SagaClass, where: str, step: object) -> None:
    if not isinstance(step, type) or not issubclass(step, SagaStepHandler):
        what = f"the class {step.__name__}" if isinstance(step, type) else f"a {type(step).__name__}"
        raise DefinitionError(f"{where} must be a SagaStepHandler class or a Fallback, it is {what}")
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
    for method in (step.act, step.compensate):
        # A decorator may wrap a coroutine function in a plain one: only a plain function as written is surely wrong.
        plain = inspect.isfunction(method) and not inspect.iscoroutinefunction(method)
        if plain and not hasattr(method, "__wrapped__"):
            raise DefinitionError(f"{where}: {name}.{method.__name__} must be `async def`")
    for setting in ("timeout_s", "queue_within_s"):
        value = getattr(step, setting)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DefinitionError(f"{where}: {name}.{setting} must be a number of seconds, it is {value!r}")
