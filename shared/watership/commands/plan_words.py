"""Plans in words: what each node of one does, in a line for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from watership.commands.screen import span
from watership.machine.nodes import FallbackPlan, Node, ParallelPlan, RetryPlan, SleepPlan, StepPlan, WaitPlan
from watership.machine.plan import Plan


def plan_lines(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """A line for each node, and for each member of one: its number, its name, what it does."""
    for number, node in enumerate(plan.nodes, start=1):
        yield from _node_lines(f"{number}", node, plan.pivot)


def plan_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """What holds for the saga as a whole."""
    if plan.pivot is not None:
        yield "pivot", f"{plan.pivot}: from there it only goes forward"
    if plan.deadline_ms is not None:
        until = " until its pivot" if plan.pivot is not None else ""
        yield "deadline", f"{span(plan.deadline_ms)}{until}, then it is compensated"
    fields = plan.context_schema.get("properties", {})
    required = plan.context_schema.get("required", ())
    if fields:
        yield "context", ", ".join(name if name in required else f"{name} (may be left out)" for name in fields)


def _node_lines(number: str, node: Node, pivot: str | None) -> Iterator[tuple[str, str, str]]:
    match node:
        case StepPlan():
            yield number, node.name, step_words(node) + ("; the pivot" if node.name == pivot else "")
        case FallbackPlan():
            codes = ", ".join(node.failure_codes) or "any error"
            breaker = f", or while its breaker is open ({node.breaker.fail_max} failures)" if node.breaker else ""
            yield (
                number,
                "Fallback",
                f"{node.fallback.name} acts where {node.primary.name} failed with {codes}{breaker}",
            )
            for letter, step in zip("ab", (node.primary, node.fallback), strict=True):
                yield f"{number}{letter}", step.name, step_words(step)
        case ParallelPlan():
            yield number, "Parallel", f"{len(node.nodes)} at the same time"
            for place, unit in enumerate(node.nodes, start=1):
                yield from _node_lines(f"{number}.{place}", unit, pivot)
        case SleepPlan():
            yield number, node.name, f"sleeps for {span(node.duration_ms)}"
        case WaitPlan():
            yield number, node.name, wait_words(node)


def step_words(step: StepPlan) -> str:
    """What a step does, from which queue, and how often."""
    queue = f"from the queue {step.queue}, " if step.queue != step.name else ""
    parts = [f"acts {queue}{_often(step.retry)}, {span(step.timeout_ms)} at most"]
    if not step.rerun:
        parts.append("never run twice")
    if step.verify_retry is not None:
        parts.append(f"verified {_often(step.verify_retry)}")
    parts.append(f"undone {_often(step.compensation_retry)}" if step.compensable else "nothing to undo")
    return "; ".join(parts)


def wait_words(wait: WaitPlan) -> str:
    """What a wait is for, and what ends it."""
    into = f" for the context's field {wait.into}" if wait.into is not None else ""
    after = "compensates" if wait.on_timeout == "compensate" else "goes on"
    rejected = ""
    if wait.reject_if is not None:
        field, value = wait.reject_if
        rejected = f"; compensates if {field} is {value!r}"
    return f"waits for the signal {wait.name}{into}; {after} after {span(wait.timeout_ms)}{rejected}"


def _often(retry: RetryPlan) -> str:
    if retry.attempts_max == 1:
        return "once"
    times = "without end" if retry.attempts_max is None else f"up to {retry.attempts_max} times"
    return f"{times}, {span(retry.delay_ms)} apart at first" if retry.delay_ms else times
