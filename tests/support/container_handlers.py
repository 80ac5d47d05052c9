"""Handlers with dependencies, for tests of the containers that build them."""

from __future__ import annotations

import abc
from typing import TypeVar

from watership.adapters.containers import as_container

T = TypeVar("T")


class Session:
    """What must be closed: a stand-in for a database session."""

    def __init__(self) -> None:
        self.is_closed = False


class Gateway(abc.ABC):
    @abc.abstractmethod
    def charge(self) -> str: ...


class Visa(Gateway):
    def charge(self) -> str:
        return "visa"


class Amex(Gateway):
    def charge(self) -> str:
        return "amex"


class Repository:
    def __init__(self, session: Session) -> None:
        self.session = session


class Reserve:
    """A handler: what a container builds."""

    def __init__(self, repository: Repository, session: Session) -> None:
        self.repository, self.session = repository, session


class Charge:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway


class Bare:
    pass


class Unannotated:
    def __init__(self, inventory_service) -> None:  # type: ignore[no-untyped-def]  # as many programs have it
        self.inventory_service = inventory_service


class NeedsText:
    def __init__(self, url: str) -> None:
        self.url = url


class WithDefault:
    def __init__(self, retries: int = 3) -> None:
        self.retries = retries


async def resolve(container: object, handler: type[T]) -> T:
    """The handler, built in a scope of its own that is closed again."""
    async with as_container(container).scope() as scope:
        return await scope.resolve(handler)
