"""The flags that many commands share. A flag beats its ``WATERSHIP_*`` variable, which beats the ``.env``."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

TRY_IT, SERVICES, SAGAS, SET_UP = "Try it", "Services", "Sagas", "Set-up"
PANELS = (TRY_IT, SERVICES, SAGAS, SET_UP)

BrokerUrl = Annotated[
    str | None,
    typer.Option(
        "--broker-url", metavar="URL", help="amqp://user:password@host:5672/ [WATERSHIP_BROKER_URL]", show_default=False
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="postgresql+asyncpg://… or sqlite+aiosqlite:///… [WATERSHIP_DATABASE_URL]",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Which system on a shared broker and database [WATERSHIP_NAMESPACE]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SagaId = Annotated[uuid.UUID, typer.Argument(metavar="ID", help="The saga's id, a UUID.", show_default=False)]
