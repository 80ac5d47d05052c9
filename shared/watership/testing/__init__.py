"""For your tests: a saga in virtual time with stand-ins for its steps, and given/when/expect for its decisions.

::

    result = await run(OrderSaga, context, steps={"ChargeCard": fails(CardDeclined)}, container=container)
    assert result.compensated == ["ReserveStock"]

`torture` runs it on the real engine with every fault that can be made, `database` gives its handlers a database there.

It is the top layer: it may import all of Watership, and nothing of Watership imports it.
"""

from watership.testing.inline_sqlite import database
from watership.testing.ordeal import torture, torture_sync
from watership.testing.runs import SagaRun, run
from watership.testing.scenario import Scenario, given
from watership.testing.stand_ins import StandIn, compensation_fails, fails, real, succeeds, unknown
from watership.testing.torturing.report import TorturedSaga, TortureReport

__all__ = [
    "SagaRun",
    "Scenario",
    "StandIn",
    "TortureReport",
    "TorturedSaga",
    "compensation_fails",
    "database",
    "fails",
    "given",
    "real",
    "run",
    "succeeds",
    "torture",
    "torture_sync",
    "unknown",
]
