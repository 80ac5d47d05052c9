"""The services of `examples/orders`, each by itself: an action that is run again has its effect once."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from watership import SagaStepHandler
from watership.container import PlainContainer
from watership.execution import Command, Execution, Hands, execute
from watership.machine.state import Action, Outcome
from watership.saga.compile import compile_saga
from watership.saga.step import declared_types

from examples.orders import inventory, order_saga, payments, shipping, store

SAGA_ID = uuid.uuid4()
ORDER = {
    "order_id": "1",
    "sku": "book",
    "quantity": 2,
    "total_cents": 4_900,
    "currency": "EUR",
    "card": "visa",
    "address": "12 Hazel Lane",
}


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "DIRECTORY", tmp_path)
    for service in (inventory, payments, shipping):
        name = service.__name__.rpartition(".")[2]
        monkeypatch.setattr(service, "store", store.Store(name, service.SCHEMA))


async def do(handler: type[SagaStepHandler[Any, Any]], action: Action = Action.ACT, **order: Any) -> Execution:
    key = f"{SAGA_ID}:{handler.__name__}:{action}:1"
    command = Command(SAGA_ID, "OrderSaga", handler.__name__, action, 1, key, {**ORDER, **order}, 5_000)
    return await execute(command, Hands(handler, declared_types(handler)[0], PlainContainer()))


async def one(service: Any, query: str) -> Any:
    async with service.store.transaction() as db:
        ((value,),) = await db.execute_fetchall(query)
    return value


async def test_stock_is_taken_once_and_given_back_once() -> None:
    before = await one(inventory, "SELECT available FROM stock WHERE sku = 'book'")
    first, second = await do(inventory.ReserveStock), await do(inventory.ReserveStock)
    assert first.outcome is second.outcome is Outcome.DONE
    assert first.patch == second.patch == {"reservation_id": f"{SAGA_ID}:ReserveStock:act:1"}
    assert await one(inventory, "SELECT available FROM stock WHERE sku = 'book'") == before - 2
    for _ in range(2):
        assert (await do(inventory.ReserveStock, Action.COMPENSATE)).outcome is Outcome.DONE
    assert await one(inventory, "SELECT available FROM stock WHERE sku = 'book'") == before


async def test_what_is_out_of_stock_leaves_no_reservation() -> None:
    done = await do(inventory.ReserveStock, sku="unicorn")
    assert done.outcome is Outcome.FAILED
    assert done.failure is not None
    assert done.failure.code == "out_of_stock"
    assert await one(inventory, "SELECT count(*) FROM reservation") == 0


async def test_a_card_is_charged_once_and_refunded() -> None:
    for _ in range(2):
        assert (await do(payments.ChargeCard)).outcome is Outcome.DONE
    assert await one(payments, "SELECT sum(amount_cents) FROM charge WHERE NOT refunded") == 4_900
    await do(payments.ChargeCard, Action.COMPENSATE)
    assert await one(payments, "SELECT count(*) FROM charge WHERE NOT refunded") == 0
    assert (await do(payments.ChargeCard, card="declined")).outcome is Outcome.FAILED


async def test_a_parcel_goes_by_the_other_carrier_where_the_first_does_not_deliver() -> None:
    refused = await do(shipping.ShipParcel, address="Gull island")
    assert refused.outcome is Outcome.FAILED
    await do(shipping.ShipParcelByPost, address="Gull island")
    shipped = await do(shipping.ShipParcelByPost, address="Gull island")
    assert shipped.response == {"carrier": "Post", "tracking_code": "POST-1"}
    assert await one(shipping, "SELECT count(*) FROM parcel") == 1
    await do(shipping.ShipParcelByPost, Action.COMPENSATE)
    assert await one(shipping, "SELECT count(*) FROM parcel") == 0


def test_the_services_serve_every_step_of_the_saga_on_its_queue() -> None:
    plan = compile_saga(order_saga.OrderSaga).plan
    wanted = {name: step.queue for name, step in plan.by_name.items()}
    workers = (inventory.worker, payments.worker, shipping.worker)
    assert {handler.step: handler.queue for worker in workers for handler in worker.announced()} == wanted
    fields = set(order_saga.OrderContext.__dataclass_fields__)
    for handler in (inventory.ReserveStock, payments.ChargeCard, shipping.ShipParcel, shipping.ShipParcelByPost):
        assert set(declared_types(handler)[0].__dataclass_fields__) < fields
