"""Settings and arguments that cannot be: a sentence that names them, and nothing is dropped in silence."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from watership import ConfigurationError, MemorySagaStorage, SagaMap, UnknownSaga, bootstrap
from watership.machine.state import Status
from watership.saga.results import result_of
from watership.saga.storage.engines import parse_url
from watership.saga.watch import SagaEnd, SagaWatch
from watership.settings import Settings, load_settings
from watership_orchestrator.database import open_database


def nothing(mapper: SagaMap) -> None:
    """No saga is bound."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"saga_storage": MemorySagaStorage(), "namespace": "orders"}, "a storage has a namespace of its own"),
        ({"broker_url": "amqp://h/", "barrier": AsyncSession}, "the handlers run in the workers; give it to them"),
    ],
)
def test_an_argument_that_would_be_dropped_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        bootstrap(sagas_mapper=nothing, **arguments)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"namespace": "a b"}, "WATERSHIP_NAMESPACE='a b': String should match"),
        ({"announce_every_s": 300}, "WATERSHIP_ANNOUNCE_EVERY_S=300: Input should be less than or equal to 60"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_settings(**given)


def test_a_database_url_whose_port_is_no_number_is_refused_without_its_password() -> None:
    for read in (parse_url, open_database):
        with pytest.raises(ConfigurationError, match="this is not a database URL") as refused:
            read("postgresql+asyncpg://ann:secret@host:five/orders")
        assert "secret" not in str(refused.value)
    assert open_database("postgresql://host/orders").url.drivername == "postgresql+asyncpg"


async def test_the_result_of_a_saga_that_is_not_bound_here_is_refused_with_its_name() -> None:
    watch = SagaWatch(uuid.uuid4())
    watch.ended(SagaEnd("Elsewhere", Status.COMPLETED, {}))
    with pytest.raises(UnknownSaga, match="belongs to Elsewhere, and no saga of that name is bound here"):
        await result_of(watch, {}, 5, None)


def test_the_guide_has_every_setting() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs/guide.md").read_text()
    rows = [
        f"| `WATERSHIP_{name.upper()}` | {'' if field.default is None else f'{field.default:g}' if isinstance(field.default, float) else field.default} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    table = "\n".join(["| variable | default | what |", "|---|---|---|", *rows])
    assert table in guide, f"docs/guide.md, Settings, should have:\n{table}"
