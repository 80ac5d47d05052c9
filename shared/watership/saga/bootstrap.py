"""Makes a `SagaMediator`. Cheap, synchronous, and opens nothing: connections are made at first use, and shared."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from watership.adapters.containers import as_container
from watership.errors import ConfigurationError
from watership.execution import checked_barrier
from watership.saga.drivers import EmbeddedRunner
from watership.saga.mediator import SagaMediator
from watership.saga.retry import RetryPolicy
from watership.saga.saga import SagaMap
from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.storage.protocol import SagaStorage
from watership.saga.watch import Runner

log = logging.getLogger("watership")

NAMESPACE = "watership"


def bootstrap(
    di_container: object | None = None,
    sagas_mapper: Callable[[SagaMap], None] | SagaMap | None = None,
    saga_storage: SagaStorage | None = None,
    *,
    database_url: str | None = None,
    broker_url: str | None = None,
    namespace: str = NAMESPACE,
    compensation_retry: RetryPolicy | None = None,
    recover_every_s: float = 5.0,
    barrier: type[Any] | None = None,
) -> SagaMediator:
    """A mediator for the sagas that ``sagas_mapper`` binds.

    ``saga_storage`` or ``database_url`` (``sqlite+aiosqlite:///orders.db``, ``postgresql+asyncpg://...``) runs them in
    this process. ``broker_url`` (``amqp://...``) puts the same mediator in front of the distributed system; then
    ``di_container`` is not used here: workers have their own. With none of them, sagas live in memory.

    ``compensation_retry`` is for sagas and steps that do not say. ``recover_every_s``: how often sagas that nobody
    drives are looked for; 0 turns it off. ``barrier``: the type of the handlers' database session, as for a ``Worker``:
    every handler that runs in this process runs behind the barrier, in one transaction of it. Raises `ConfigurationError` and `DefinitionError`.
    """
    given = [
        name
        for name, value in (
            ("saga_storage", saga_storage),
            ("database_url", database_url),
            ("broker_url", broker_url),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigurationError(f"bootstrap takes one of saga_storage, database_url and broker_url, not {given}")
    if not re.fullmatch(r"[A-Za-z0-9_\-]{1,100}", namespace):
        raise ConfigurationError(f"a namespace has letters, digits, _ and -, 100 at most; this one is {namespace!r}")
    if saga_storage is not None and namespace != NAMESPACE:
        raise ConfigurationError(
            f"bootstrap(saga_storage=..., namespace={namespace!r}): a storage has a namespace of its own; give it to that"
        )
    if broker_url is not None and barrier is not None:
        raise ConfigurationError(
            "bootstrap(broker_url=..., barrier=...): the handlers run in the workers; give it to them: Worker(barrier=...)"
        )
    saga_map = SagaMap.of(sagas_mapper)
    runner: Runner
    if broker_url is not None:
        from watership.client import WireRunner

        runner = WireRunner(broker_url, namespace=namespace)
    else:
        storage = saga_storage or _storage(database_url, namespace)
        runner = EmbeddedRunner(
            storage,
            as_container(di_container),
            recover_every_s=recover_every_s,
            barrier=checked_barrier(barrier, di_container),
        )
    return SagaMediator(saga_map, runner, compensation_retry=compensation_retry)


def _storage(database_url: str | None, namespace: str) -> SagaStorage:
    if database_url is None:
        log.warning("no saga_storage, database_url or broker_url: sagas live in memory, and are lost with the process")
        return MemorySagaStorage()
    from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

    return SqlAlchemySagaStorage(database_url, namespace=namespace)
