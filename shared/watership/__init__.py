"""Watership runs sagas: business transactions across services. Every step acts, or every step that acted is undone.

In this process on SQLite, Postgres or memory; or distributed, over RabbitMQ and Postgres, with the same classes.
"""

from typing import TYPE_CHECKING, Any

from watership.adapters.circuit_breaker import AioBreakerAdapter
from watership.barrier import barrier, prune_barrier
from watership.errors import (
    ActRefused,
    AlreadyHandled,
    BarrierMisused,
    BrokerUnavailable,
    ConfigurationError,
    DefinitionError,
    InvalidPayload,
    LeaseLost,
    LimitExceeded,
    OperationRefused,
    OutcomeUnknown,
    ResultTimeout,
    SagaCancelled,
    SagaCompensated,
    SagaConflict,
    SagaNotFound,
    SagaParked,
    SagaPruned,
    SignalRefused,
    StartRejected,
    StepError,
    StepFailed,
    StoreUnavailable,
    UnknownSaga,
    WatershipError,
)
from watership.response import Response
from watership.saga.bootstrap import bootstrap
from watership.saga.fallback import Fallback
from watership.saga.flow import Parallel, Sleep, Wait
from watership.saga.mediator import SagaMediator
from watership.saga.models import SagaContext
from watership.saga.recovery import recover_saga
from watership.saga.results import SagaResult
from watership.saga.retry import RetryPolicy
from watership.saga.saga import Saga, SagaMap
from watership.saga.step import (
    Remote,
    SagaStepHandler,
    SagaStepResult,
    StepEvent,
    StepRun,
    Verified,
    current_step,
)
from watership.saga.storage.memory import MemorySagaStorage

if TYPE_CHECKING:
    from watership.barrier_table import BarrierBase
    from watership.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage

__version__ = "0.1.0"

__all__ = [
    "ActRefused",
    "AioBreakerAdapter",
    "AlreadyHandled",
    "BarrierBase",
    "BarrierMisused",
    "Base",
    "BrokerUnavailable",
    "ConfigurationError",
    "DefinitionError",
    "Fallback",
    "InvalidPayload",
    "LeaseLost",
    "LimitExceeded",
    "MemorySagaStorage",
    "OperationRefused",
    "OutcomeUnknown",
    "Parallel",
    "Remote",
    "Response",
    "ResultTimeout",
    "RetryPolicy",
    "Saga",
    "SagaCancelled",
    "SagaCompensated",
    "SagaConflict",
    "SagaContext",
    "SagaMap",
    "SagaMediator",
    "SagaNotFound",
    "SagaParked",
    "SagaPruned",
    "SagaResult",
    "SagaStepHandler",
    "SagaStepResult",
    "SignalRefused",
    "Sleep",
    "SqlAlchemySagaStorage",
    "StartRejected",
    "StepError",
    "StepEvent",
    "StepFailed",
    "StepRun",
    "StoreUnavailable",
    "UnknownSaga",
    "Verified",
    "Wait",
    "WatershipError",
    "barrier",
    "bootstrap",
    "current_step",
    "prune_barrier",
    "recover_saga",
]


def __getattr__(name: str) -> Any:
    """The SQL storage at first use: importing SQLAlchemy takes longer than all the rest, and not every process needs it."""
    if name in ("Base", "SqlAlchemySagaStorage"):
        from watership.saga.storage import sqlalchemy

        return getattr(sqlalchemy, name)
    if name == "BarrierBase":
        from watership import barrier_table

        return barrier_table.BarrierBase
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
