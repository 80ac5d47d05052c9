"""What does not fit the schema of a plan's context is refused where it comes in, in a sentence that names the field."""

from __future__ import annotations

from typing import Any

import pytest

from watership.machine.nodes import WaitPlan
from watership.machine.plan import Plan
from watership.messages import SagaRejected, Signal, SignalAnswer, StartSaga

from tests.support.judging import step
from tests.support.memory_orchestrator import SAGA_ID, Service, service

__all__ = ["service"]  # a fixture

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "integer"},
        "to": {"type": "object", "properties": {"zip": {"type": "string"}}},
        "approval": {"anyOf": [{"$ref": "#/$defs/Approval"}, {"type": "null"}]},
    },
    "required": ["total"],
    "$defs": {"Approval": {"type": "object", "required": ["by"], "properties": {"by": {"type": "string"}}}},
}
PLAN = Plan("OrderSaga", (WaitPlan("approval", "approval", 60_000), step("A")), SCHEMA)


def start(context: dict[str, Any]) -> StartSaga:
    return StartSaga(saga="OrderSaga", saga_id=SAGA_ID, context=context)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({}, 'it: "total" is a required property'),
        ({"total": "much"}, 'total: "much" is not of type "integer"'),
        ({"total": 1, "to": {"zip": 7}}, 'to.zip: 7 is not of type "string"'),
    ],
)
async def test_a_start_whose_context_does_not_fit_makes_no_saga(
    service: Service, context: dict[str, Any], words: str
) -> None:
    await service.backing.plans.keep([PLAN])
    refused = SagaRejected.model_validate_json(await service.ask("start", start(context)))
    assert refused.code == "invalid_payload"
    assert refused.reason == f"the context of saga OrderSaga {SAGA_ID} does not fit its schema: {words}"
    assert "saga_not_found" in await service.show()
    await service.send("start", start({"total": 1}))
    assert "it awaits" in await service.show(), "the id is free for a start that fits"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("yes", 'approval: "yes" is not of type "object"'),
        ({"by": 7}, 'approval.by: 7 is not of type "string"'),
        ({}, 'approval: "by" is a required property'),
        ({"by": "ann"}, None),
        (None, None),
    ],
)
async def test_a_signal_whose_data_does_not_fit_its_field_is_refused(
    service: Service, data: Any, words: str | None
) -> None:
    await service.backing.plans.keep([PLAN])
    await service.send("start", start({"total": 1}))
    before = await service.show()
    signal = Signal(saga_id=SAGA_ID, signal_id="s", name="approval", data=data)
    answer = SignalAnswer.model_validate_json(await service.ask("control", signal))
    if words is None:
        assert answer.refused is None
    else:
        assert answer.refused is not None
        assert words in answer.refused
        assert await service.show() == before
