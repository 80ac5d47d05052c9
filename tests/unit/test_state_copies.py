"""A state that was copied, in whatever way, goes its own way: and so do the actions of its steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from watership.machine import changes as c
from watership.machine.apply import apply
from watership.machine.state import UNTOUCHED, Action, Phase, SagaState, Status

WAYS: list[Callable[[SagaState], SagaState]] = [
    copy.deepcopy,
    lambda state: pickle.loads(pickle.dumps(state)),  # our own
    SagaState.copy,
    SagaState.successor,
]


@pytest.mark.parametrize("copied", WAYS, ids=["deepcopy", "pickle", "copy", "successor"])
def test_no_action_stands_for_another(copied: Callable[[SagaState], SagaState]) -> None:
    state = SagaState("s", status=Status.RUNNING)
    apply(state, c.Dispatched("A", Action.ACT, 1, 5))
    other = copied(state)
    assert other == state
    apply(other, c.Dispatched("A", Action.COMPENSATE, 1, 5))
    assert [(name, action) for name, action, _ in other.active_actions()] == [
        ("A", Action.ACT),
        ("A", Action.COMPENSATE),
    ]
    assert (other.steps["A"].verify, UNTOUCHED.phase) == (UNTOUCHED, Phase.IDLE)
    assert [(name, action) for name, action, _ in state.active_actions()] == [("A", Action.ACT)]
