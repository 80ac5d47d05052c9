"""Refuses a plan that could not run right: what it says of each, it says with the saga, the step and the reason.

**Pivot algebra.** Before the pivot a saga can go back; after it, only forward. So what comes after must need no undoing,
must be tried without end, and nothing there may turn the saga around.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from watership.errors import DefinitionError
from watership.machine.nodes import (
    ATTEMPTS_MAX,
    DELAY_MS_MAX,
    JITTER_MAX,
    NAME_BYTES_MAX,
    PAUSE_MS_MAX,
    PAUSE_NAME_CHARS_MAX,
    STEPS_MAX,
    TIMEOUT_MS_MAX,
    FallbackPlan,
    Node,
    ParallelPlan,
    RetryPlan,
    SleepPlan,
    StepPlan,
    WaitPlan,
    members,
    names,
)


def lint(saga: str, nodes: Sequence[Node], pivot: str | None = None, deadline_ms: int | None = None) -> None:
    """Raises `DefinitionError` that names the saga and the step."""
    lint_name("the saga's name", saga)
    lint_names(saga, [name for node in nodes for name in names(node)])
    for node in nodes:
        _lint_node(saga, node)
        for step in members(node):
            _lint_step(saga, step)
    if deadline_ms is not None:
        _lint_number(f"{saga}: deadline_s in ms", deadline_ms, 1, PAUSE_MS_MAX)
    if pivot is not None:
        _lint_pivot(saga, nodes, pivot, deadline_ms)


def lint_names(saga: str, found: Sequence[str]) -> None:
    """Refuses a saga without steps, with a step twice, or with too many."""
    if not found:
        raise DefinitionError(f"{saga} has no steps; list at least one")
    if len(found) > STEPS_MAX:
        raise DefinitionError(f"{saga} has {len(found)} steps, the limit is {STEPS_MAX}")
    for name in found:
        if found.count(name) > 1:
            raise DefinitionError(
                f"{saga} lists the step {name} twice; a step's name is unique within a saga: "
                f"give one of them another name, by a subclass or by `name = ...`"
            )


def lint_name(what: str, name: object, where: str = "") -> None:
    """Refuses a name that would not go into what the broker and the database know it by; ``where``: whose it is."""
    _lint_text(f"{where}{what}", name)
    size = len(str(name).encode())
    if size > NAME_BYTES_MAX:
        raise DefinitionError(
            f"{where}{what} {_shown(name)} is {size} bytes long, the limit is {NAME_BYTES_MAX}: with a namespace or an id "
            f"it has to go into the 255 bytes of an AMQP name"
        )


def _lint_text(what: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{what} must be a string that is not empty, it is {name!r}")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DefinitionError(f"{what} holds a NUL or a lone surrogate: {name!a}")


def _shown(name: object) -> str:
    text = str(name)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _lint_node(saga: str, node: Node) -> None:
    if isinstance(node, SleepPlan | WaitPlan):
        _lint_text(f"{saga}: the name of a {node.kind}", node.name)
        if len(node.name) > PAUSE_NAME_CHARS_MAX:
            raise DefinitionError(
                f"{saga}: the name of a {node.kind} {_shown(node.name)} is {len(node.name)} characters long, the limit is "
                f"{PAUSE_NAME_CHARS_MAX}"
            )
    if isinstance(node, ParallelPlan):
        if len(node.nodes) < 2:
            raise DefinitionError(
                f"{saga}: a Parallel with {len(node.nodes)} member: name two at least, or the step alone"
            )
        for unit in node.nodes:
            if not isinstance(unit, StepPlan | FallbackPlan):
                raise DefinitionError(f"{saga}: a Parallel holds steps and Fallbacks only, not a {unit.kind}")
    elif isinstance(node, SleepPlan):
        _lint_number(f"{saga}: {node.name}: its seconds, in ms", node.duration_ms, 1, PAUSE_MS_MAX)
    elif isinstance(node, WaitPlan):
        _lint_number(f"{saga}: Wait {node.name}: timeout_s in ms", node.timeout_ms, 1, PAUSE_MS_MAX)
        if node.on_timeout not in ("compensate", "continue"):
            raise DefinitionError(
                f'{saga}: Wait {node.name}: on_timeout is "compensate" or "continue", not {node.on_timeout!r}'
            )
        if node.reject_if is not None and not isinstance(node.reject_if[1], str | int | float | bool | None):
            raise DefinitionError(
                f"{saga}: Wait {node.name}: reject_if compares a field with a string, a number, a bool or None"
            )


def _lint_pivot(saga: str, nodes: Sequence[Node], pivot: str, deadline_ms: int | None) -> None:
    place = next((index for index, node in enumerate(nodes) if pivot in names(node)), None)
    if place is None:
        raise DefinitionError(f"{saga}: its pivot {pivot} is none of its steps")
    if not isinstance(nodes[place], StepPlan):
        kind = "a Parallel" if isinstance(nodes[place], ParallelPlan) else f"a {nodes[place].kind}"
        raise DefinitionError(
            f"{saga}: its pivot {pivot} is in {kind}: whether the saga can still go back must hang on one step alone"
        )
    if deadline_ms is not None and place == 0:
        raise DefinitionError(
            f"{saga}: deadline_s can only fire past the pivot, since {pivot} is its first step: leave it out"
        )
    for node in nodes[place + 1 :]:
        _lint_after_pivot(saga, pivot, node)


def _lint_after_pivot(saga: str, pivot: str, node: Node) -> None:
    where = f"after the pivot {pivot} the saga only goes forward"
    if isinstance(node, FallbackPlan) or (
        isinstance(node, ParallelPlan) and any(isinstance(unit, FallbackPlan) for unit in node.nodes)
    ):
        raise DefinitionError(
            f"{saga}: a Fallback of {members(node)[0].name}: {where}, and its primary may need undoing"
        )
    if isinstance(node, WaitPlan) and node.on_timeout == "compensate":
        raise DefinitionError(
            f'{saga}: Wait {node.name} would compensate at its timeout: {where}; say on_timeout="continue"'
        )
    if isinstance(node, WaitPlan) and node.reject_if is not None:
        raise DefinitionError(f"{saga}: Wait {node.name} has reject_if: {where}; put it before the pivot")
    for step in members(node):
        if step.compensable:
            raise DefinitionError(
                f"{saga}.{step.name} has a compensation: {where}; drop `compensate` (of a Remote step: "
                f"compensable=False), or move the step before the pivot"
            )
        if step.retry.attempts_max is not None:
            raise DefinitionError(
                f"{saga}.{step.name} has {step.retry.attempts_max} attempts: {where}, so a step there is tried without "
                f"end; leave `retry` out, or say RetryPolicy(max_attempts=None)"
            )


def _lint_step(saga: str, step: StepPlan) -> None:
    lint_name("the step's name", step.name, f"{saga}: ")
    where = f"{saga}.{step.name}"
    lint_name("the name of its queue", step.queue, f"{where}: ")
    _lint_retry(f"{where}: retry", step.retry)
    _lint_retry(f"{where}: compensation_retry", step.compensation_retry)
    if step.verify_retry is not None:
        _lint_retry(f"{where}: verify_retry", step.verify_retry)
    _lint_number(f"{where}: timeout_s in ms", step.timeout_ms, 1, TIMEOUT_MS_MAX)
    _lint_number(f"{where}: queue_within_s in ms", step.queue_within_ms, 1, DELAY_MS_MAX)


def _lint_retry(where: str, retry: RetryPlan) -> None:
    if retry.attempts_max is not None:
        _lint_number(f"{where}: its attempts", retry.attempts_max, 1, ATTEMPTS_MAX)
    elif retry.delay_ms == 0:
        raise DefinitionError(f"{where} is without end and without a delay: give it a delay_s")
    _lint_number(f"{where}: its delay in ms", retry.delay_ms, 0, DELAY_MS_MAX)
    _lint_number(f"{where}: its longest delay in ms", retry.delay_max_ms, 0, DELAY_MS_MAX)
    if not 1.0 <= retry.backoff < math.inf or retry.jitter < 0.0:
        raise DefinitionError(f"{where} needs a backoff of 1 or more, a finite one, and a jitter of 0 or more")
    if not retry.jitter <= JITTER_MAX:  # a delay of 60 s with a jitter of 10 is one of eleven minutes at the most
        raise DefinitionError(f"{where}: its jitter is {retry.jitter:g}, the limit is {JITTER_MAX}: 1 doubles a delay")


def _lint_number(what: str, value: object, least: int, most: int) -> None:
    """Plans come from elsewhere, too: a number that the broker or a column cannot take would disturb other sagas."""
    if type(value) is not int or not least <= value <= most:
        raise DefinitionError(f"{what} must be a whole number from {least} to {most}, it is {value!r}")
