"""A saga as users write it: a context type and a list of steps."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from watership.errors import ConfigurationError, DefinitionError
from watership.saga.compile import check_class, context_type, saga_name
from watership.saga.fallback import Fallback
from watership.saga.flow import Parallel, Sleep, Wait
from watership.saga.models import ContextT
from watership.saga.retry import RetryPolicy
from watership.saga.spelling import check_spelling
from watership.saga.step import SagaStepHandler

if TYPE_CHECKING:
    from watership.saga.storage.protocol import SagaStorage
    from watership.saga.transaction import SagaTransaction


class Saga(Generic[ContextT]):
    """A business transaction: every step acts, or every step that acted is undone, in reverse order.

    ::

        class OrderSaga(Saga[OrderContext]):
            steps = [ReserveStock, ChargeCard, ShipParcel]

    A class that is written wrong raises `DefinitionError` when it is made.
    """

    is_saga: ClassVar[bool] = True
    #: The steps in order: step classes, `Remote` steps, `Fallback`, `Parallel`, `Sleep` and `Wait`.
    steps: ClassVar[Sequence[type[SagaStepHandler[Any, Any]] | Fallback | Parallel | Sleep | Wait]] = []
    #: Steps that it had in an earlier version: not a part of its plan, but sagas in flight that began with them run them.
    former_steps: ClassVar[Sequence[type[SagaStepHandler[Any, Any]]]] = ()
    #: The saga's name on the wire and in the log; its class's name unless set.
    name: ClassVar[str | None] = None
    #: Retries of every compensation whose step does not say; None: three in all, after 0, 1 and 2 seconds.
    compensation_retry: ClassVar[RetryPolicy | None] = None
    #: The step after which the saga only goes forward: what follows is tried without end, and never compensated.
    pivot: ClassVar[type[SagaStepHandler[Any, Any]] | None] = None
    #: How long the saga may take, in seconds, until it is compensated; up to its pivot, if it has one.
    deadline_s: ClassVar[float | None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        check_spelling(cls.__name__, cls, Saga)
        said = cls.__dict__.keys() & {"steps", "pivot", "deadline_s"}
        if "steps" in said or (said and cls.steps):  # a base for other sagas may have none yet
            check_class(cls)

    @property
    def steps_count(self) -> int:
        """How many steps the saga has; a fallback counts as one."""
        return len(self.steps)

    def transaction(
        self,
        context: ContextT,
        container: object | None = None,
        storage: SagaStorage | None = None,
        saga_id: uuid.UUID | None = None,
        compensation_retry_count: int | None = None,
        compensation_retry_delay: float | None = None,
        compensation_retry_backoff: float | None = None,
        barrier: type[Any] | None = None,
    ) -> SagaTransaction[ContextT]:
        """The saga in this process, step by step under the caller's eyes.

        ::

            async with saga.transaction(context=context, container=container, storage=storage) as transaction:
                async for result in transaction:
                    ...

        An exception that leaves the block before the saga has ended has it compensated. Delays are in seconds,
        ``compensation_retry_count`` counts all attempts. ``barrier`` as for `bootstrap`.
        """
        from watership.saga.transaction import SagaTransaction

        given = (compensation_retry_count, compensation_retry_delay, compensation_retry_backoff)
        retry = None
        if any(value is not None for value in given):
            count, delay_s, backoff = given
            retry = RetryPolicy(
                max_attempts=3 if count is None else count,
                delay_s=1.0 if delay_s is None else delay_s,
                backoff=2.0 if backoff is None else backoff,
                jitter=0.0,
            )
        return SagaTransaction(type(self), context, container, storage, saga_id, retry, barrier)


class SagaMap:
    """Which saga a context starts. One saga for a context type; one class for a saga's name."""

    def __init__(self) -> None:
        self._by_context: dict[type[Any], type[Saga[Any]]] = {}

    @classmethod
    def of(cls, mapper: Callable[[SagaMap], None] | SagaMap | None) -> SagaMap:
        """The map that a ``sagas_mapper`` fills; a map is taken as it is, None is an empty one."""
        if isinstance(mapper, SagaMap):
            return mapper
        saga_map = cls()
        if mapper is not None and not callable(mapper):
            raise ConfigurationError(
                f"sagas_mapper must be a function that takes a SagaMap and binds sagas, it is {mapper!r}"
            )
        if mapper is not None:
            mapper(saga_map)
        return saga_map

    def bind(self, context: type[Any], saga: type[Saga[Any]]) -> None:
        """Binds a context type to the saga that it starts. Raises `DefinitionError` on a second one."""
        bound = self._by_context.get(context)
        if bound is not None:
            raise DefinitionError(f"{context.__name__} is bound to {bound.__name__} already; bind each context once")
        for other in self._by_context.values():
            if saga_name(other) == saga_name(saga) and other is not saga:
                raise DefinitionError(f"two sagas are named {saga_name(saga)}; give one of them another `name`")
        wanted = context_type(saga)
        if isinstance(wanted, type) and not issubclass(context, wanted):
            raise DefinitionError(f"{saga.__name__} runs on {wanted.__name__}, so {context.__name__} cannot start it")
        self._by_context[context] = saga

    def saga_for(self, context: type[Any]) -> type[Saga[Any]] | None:
        """The saga that a context of this type starts; a subclass starts what its base is bound to."""
        for cls in context.__mro__:
            saga = self._by_context.get(cls)
            if saga is not None:
                return saga
        return None

    def sagas(self) -> Iterator[type[Saga[Any]]]:
        """Every bound saga once."""
        return iter(dict.fromkeys(self._by_context.values()))

    def __len__(self) -> int:
        return len(self._by_context)
