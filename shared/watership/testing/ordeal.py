"""`torture` and `torture_sync`: the doors to `watership.testing.torturing`, which needs the services and is imported late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from watership.errors import ConfigurationError
from watership.saga.models import ContextT
from watership.saga.saga import Saga
from watership.testing.stand_ins import AsyncFunction, StandIn

if TYPE_CHECKING:
    from watership.testing.torturing.report import TorturedSaga, TortureReport

    Check = Callable[[TorturedSaga[Any]], Any]

OWN_PACKAGES = ("watership", "watership_orchestrator", "watership_worker")


async def torture(
    saga: type[Saga[ContextT]],
    context: ContextT,
    *,
    steps: Mapping[str, StandIn | AsyncFunction] | None = None,
    container: object | None = None,
    barrier: type[Any] | None = None,
    check: Check | None = None,
    fresh: Callable[[], Any] | None = None,
    signals: Mapping[str, Any] | None = None,
    pairs: int = 0,
    seed: int | str = 0,
    only: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> TortureReport:
    """Runs ``saga`` on the real engine in virtual time, hundreds of times, with another fault in each run.

    ::

        report = await torture(OrderSaga, OrderContext("A-1", 4_200), fresh=fresh)
        assert report.ok, report

    Each run has an orchestrator, a reaper and a worker of its own. First nothing goes wrong; then each step fails, is
    unknown (having acted, and not), and its compensation fails once. On the way there and on the way back every process is
    crashed at every point (each statement, commit, publish, acknowledgement, write of a handler, begin and end of it),
    stopped for longer than every deadline and woken, and cut off from the broker; every message is lost, doubled, late.
    Every run must end COMPLETED, with everything applied, or COMPENSATED, with everything undone.

    ``steps``, ``container``: as in `run`. ``barrier``: as in `Worker`. ``fresh`` is called before every run, and gives it a
    clean participant: it returns a container, or a container and a check; it may be async. ``check(saga)`` looks at your
    books after a run, and raises or returns a sentence if they do not balance; it gets a `TorturedSaga`; it may be async.
    Without a check, handlers that nothing kept from having their effect twice are found. ``signals``: the data for each
    `Wait` by its name. ``pairs``: so many runs with two faults each, drawn from ``seed``. ``only``: the key of a finding, to
    see it alone. ``progress(done, all)`` is called after each run.

    Everything runs in a thread of its own, in a virtual event loop, handlers, ``fresh`` and ``check`` included: there are
    no sockets and no threads. Give handlers fakes, or an engine of `database`. It may be awaited in any event loop, under
    pytest-asyncio as well. Raises `ConfigurationError` for what cannot run there, `DefinitionError` as `run` does.
    """
    stop = threading.Event()
    try:
        return await asyncio.to_thread(
            torture_sync,
            saga,
            context,
            steps=steps,
            container=container,
            barrier=barrier,
            check=check,
            fresh=fresh,
            signals=signals,
            pairs=pairs,
            seed=seed,
            only=only,
            progress=progress,
            is_stopped=stop.is_set,
        )
    finally:
        stop.set()  # a thread cannot be cancelled: it ends after the run that it is in


def torture_sync(
    saga: type[Saga[ContextT]],
    context: ContextT,
    *,
    steps: Mapping[str, StandIn | AsyncFunction] | None = None,
    container: object | None = None,
    barrier: type[Any] | None = None,
    check: Check | None = None,
    fresh: Callable[[], Any] | None = None,
    signals: Mapping[str, Any] | None = None,
    pairs: int = 0,
    seed: int | str = 0,
    only: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> TortureReport:
    """`torture` for a program without an event loop, in the calling thread. ``is_stopped`` True: it gives up."""
    try:
        from watership.testing.torturing.face import hold
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in OWN_PACKAGES:
            raise
        raise ConfigurationError(
            f"torture runs the services, which need {missing}: pip install 'watership[server]'"
        ) from error
    return hold(
        saga,
        context,
        steps=steps,
        container=container,
        barrier=barrier,
        check=check,
        fresh=fresh,
        signals=signals,
        pairs=pairs,
        seed=seed,
        only=only,
        progress=progress,
        is_stopped=is_stopped,
    )
