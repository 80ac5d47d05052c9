"""Settings of the services and the command line: from flags, ``WATERSHIP_*`` variables or a ``.env``, in that order.

The library never reads them: `bootstrap` takes arguments only.
"""

from __future__ import annotations

import pydantic
from pydantic_settings import BaseSettings, SettingsConfigDict

from watership.errors import ConfigurationError


class Settings(BaseSettings):
    """What every service needs to know. Each number has its unit in its name."""

    model_config = SettingsConfigDict(env_prefix="WATERSHIP_", env_file=".env", extra="ignore")

    broker_url: str | None = pydantic.Field(
        default=None, description="the broker: amqp://user:password@host:5672/vhost"
    )
    database_url: str | None = pydantic.Field(
        default=None, description="the database: postgresql+asyncpg://user:password@host/name"
    )
    namespace: str = pydantic.Field(
        default="watership",
        min_length=1,
        max_length=100,
        pattern=r"^[A-Za-z0-9_\-]+$",
        description="which system on a shared broker and database",
    )
    prefetch: int = pydantic.Field(
        default=500, ge=1, le=2000, description="messages in hand, per queue; under load each carries many"
    )
    batch_size_max: int = pydantic.Field(default=500, ge=1, le=2000, description="arrivals in one transaction")
    concurrency: int = pydantic.Field(default=50, ge=1, le=2000, description="handlers at once, per worker")
    reap_every_s: float = pydantic.Field(default=1.0, gt=0, description="how often a reaper looks")
    reap_batch_max: int = pydantic.Field(default=200, ge=1, le=2000, description="sagas in one look")
    announce_every_s: float = pydantic.Field(
        default=60.0,
        gt=0,
        le=60.0,
        description="how often a worker says what it serves; one that is not heard of for three minutes is gone",
    )
    dead_letter_retention_s: float = pydantic.Field(
        default=604_800.0,
        ge=0,
        description="how long a dead letter may still be judged again: no saga is pruned sooner",
    )
    drain_s: float = pydantic.Field(default=25.0, gt=0, description="how long a stopping service finishes its work")

    def broker(self) -> str:
        """The broker's URL. Raises `ConfigurationError` that says how to set it."""
        if not self.broker_url:
            raise ConfigurationError(
                "no broker: set --broker-url or WATERSHIP_BROKER_URL, e.g. amqp://guest:guest@localhost:5672/"
            )
        return self.broker_url

    def database(self) -> str:
        """The database's URL. Raises `ConfigurationError` that says how to set it."""
        if not self.database_url:
            raise ConfigurationError(
                "no database: set --database-url or WATERSHIP_DATABASE_URL, "
                "e.g. postgresql+asyncpg://user:password@localhost/orders or sqlite+aiosqlite:///orders.db"
            )
        return self.database_url


def load_settings(**given: object) -> Settings:
    """Settings with the given flags on top; None leaves a flag out. Raises `ConfigurationError`."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{_variable(item['loc'])}={item['input']!r}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"settings: {problems}") from error


def _variable(place: tuple[int | str, ...]) -> str:
    return f"WATERSHIP_{'.'.join(str(part) for part in place).upper()}"
