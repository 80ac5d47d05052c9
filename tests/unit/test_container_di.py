"""`di` through `as_container`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import di
import pytest
from di import bind_by_type
from di.dependent import Dependent

from watership.adapters.containers import as_container
from watership.errors import ConfigurationError

from tests.support.container_handlers import (
    Amex,
    Charge,
    Gateway,
    NeedsText,
    Repository,
    Reserve,
    Session,
    Unannotated,
    Visa,
    resolve,
)


class CountingContainer(di.Container):
    """Counts how often it solves; a subclass of the user's is a di.Container too."""

    solves = 0

    def solve(self, *args: Any, **kwargs: Any) -> Any:
        self.solves += 1
        return super().solve(*args, **kwargs)


def bind(container: di.Container, made: Callable[..., Any], interface: type[Any], scope: Any = "request") -> Any:
    return container.bind(bind_by_type(Dependent(made, scope=scope), interface))


async def test_di_solves_a_handler_once_whatever_the_number_of_commands() -> None:
    raw = CountingContainer()
    bind(raw, Visa, Gateway)
    container = as_container(raw)
    for _ in range(10):
        async with container.scope() as scope:
            assert (await scope.resolve(Charge)).gateway.charge() == "visa"
    assert raw.solves == 1


async def test_di_sees_binds_that_come_later_and_that_go_again() -> None:
    raw = CountingContainer()
    bind(raw, Visa, Gateway)
    container = as_container(raw)

    async def charged_by() -> str:
        async with container.scope() as scope:
            return (await scope.resolve(Charge)).gateway.charge()

    assert await charged_by() == "visa"
    with bind(raw, Amex, Gateway):
        assert await charged_by() == "amex"
    assert await charged_by() == "visa"
    assert raw.solves == 3


@pytest.mark.parametrize("scope", ["request", None])
async def test_di_takes_sync_async_and_generator_factories(scope: str | None) -> None:
    async def gateway() -> Gateway:
        return Visa()

    closed = []

    def session() -> Iterator[Session]:
        yield Session()
        closed.append("session")

    raw = di.Container()
    bind(raw, gateway, Gateway, scope)
    bind(raw, session, Session, scope)
    assert (await resolve(raw, Charge)).gateway.charge() == "visa"
    assert isinstance((await resolve(raw, Reserve)).repository, Repository)
    assert closed == ["session"]


async def test_di_builds_a_handler_by_its_own_bind() -> None:
    raw = di.Container()
    bind(raw, lambda: NeedsText("amqp://"), NeedsText)
    assert (await resolve(raw, NeedsText)).url == "amqp://"


async def test_di_tells_which_parameter_is_not_annotated() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Unannotated cannot be built: the parameter 'inventory_service' of Unannotated"
    ):
        await resolve(di.Container(), Unannotated)


async def test_di_tells_which_parameter_of_which_dependency_is_not_annotated() -> None:
    class Outer:
        def __init__(self, inner: Any) -> None: ...

    Outer.__init__.__annotations__["inner"] = Unannotated
    with pytest.raises(ConfigurationError, match=r"Outer cannot be built: .* 'inventory_service' of Unannotated"):
        await resolve(di.Container(), Outer)


class Port(Protocol):
    def send(self) -> None: ...


class Sends:
    def __init__(self, port: Port) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Charge, r"Charge cannot be built: the parameter 'gateway' of Charge is a Gateway, which is not bound"),
        (Sends, r"the parameter 'port' of Sends is a Port, which is not bound"),
        (NeedsText, r"the parameter 'url' of NeedsText is a str, which is not bound"),
    ],
)
async def test_di_tells_which_interface_is_not_bound(handler: type[Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await resolve(di.Container(), handler)


async def test_di_tells_which_bind_is_in_another_scope() -> None:
    raw = di.Container()
    bind(raw, Visa, Gateway, "app")
    with pytest.raises(ConfigurationError, match=r"Charge .* Visa is bound in the scope 'app'; .* scope=\"request\""):
        await resolve(raw, Charge)


async def test_di_tells_of_an_annotation_that_cannot_be_read() -> None:
    class Odd:
        def __init__(self, thing: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="Odd cannot be built: name 'Nowhere' is not defined"):
        await resolve(di.Container(), Odd)


async def test_di_tells_of_a_cycle() -> None:
    class Hen:
        def __init__(self, egg: Any) -> None: ...

    class Egg:
        def __init__(self, hen: Hen) -> None: ...

    Hen.__init__.__annotations__["egg"] = Egg
    Egg.__init__.__annotations__["hen"] = Hen
    with pytest.raises(ConfigurationError, match="Hen cannot be built: .*cycle"):
        await resolve(di.Container(), Hen)


async def test_di_a_generator_that_swallows_the_error_does_not_make_the_command_look_done() -> None:
    rolled_back = []

    def session() -> Iterator[Session]:
        try:
            yield Session()
        except RuntimeError:
            rolled_back.append(True)

    raw = di.Container()
    bind(raw, session, Session)
    with pytest.raises(RuntimeError, match="declined"):
        async with as_container(raw).scope() as scope:
            await scope.resolve(Reserve)
            raise RuntimeError("declined")
    assert rolled_back == [True]
