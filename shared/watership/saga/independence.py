"""Whether the members of a parallel group are independent, as far as their source tells.

It reads which fields of its context each ``act`` assigns and which it reads. What it cannot see (a field that another
function writes, source that is not there) the machine finds when it happens: two different values for one field fail
the group.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from watership.saga.step import SagaStepHandler, step_name

Step = type[SagaStepHandler[Any, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Access:
    """The fields of the context that a function reads, and those that it assigns."""

    reads: frozenset[str]
    writes: frozenset[str]


def dependence(members: Sequence[Sequence[Step]]) -> str | None:
    """The first way in which two members depend on each other, in words; None: none is to be seen.

    A member is its steps: one, or a fallback's two.
    """
    seen = [[(step, _access(step.act)) for step in member] for member in members]
    for index, member in enumerate(seen):
        for other in seen[index + 1 :]:
            for step, access in member:
                for step_2, access_2 in other:
                    words = _words(step, access, step_2, access_2) or _words(step_2, access_2, step, access)
                    if words is not None:
                        return words
    return None


def _words(step: Step, access: _Access, other: Step, other_access: _Access) -> str | None:
    both = sorted(access.writes & other_access.writes)
    if both:
        return f"{step_name(step)} and {step_name(other)} both write context.{both[0]}"
    read = sorted(access.reads & other_access.writes)
    if read:
        return f"{step_name(step)} reads context.{read[0]}, which {step_name(other)} writes"
    return None


def _access(act: Callable[..., Any]) -> _Access:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(act))))
    except (OSError, TypeError, SyntaxError):
        return _Access(frozenset(), frozenset())
    function = next((node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)), None)
    if function is None or len(function.args.args) < 2:
        return _Access(frozenset(), frozenset())
    context = function.args.args[1].arg
    reads, writes = set[str](), set[str]()
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name) or node.value.id != context:
            continue
        (reads if isinstance(node.ctx, ast.Load) else writes).add(node.attr)
    augmented = [node.target for node in ast.walk(function) if isinstance(node, ast.AugAssign)]
    reads.update(
        target.attr
        for target in augmented
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == context
    )
    return _Access(frozenset(reads), frozenset(writes))
