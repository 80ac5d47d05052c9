"""What of a database's errors passes by itself, and what is this statement's own fault."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from watership.errors import ConfigurationError
from watership_orchestrator.database import is_passing, open_database


class FromServer(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((DBAPIError("", {}, FromServer(state)), True) for state in ("40001", "40P01", "55P03", "57P01", "08006")),
        *((DBAPIError("", {}, FromServer(state)), True) for state in ("57014", "53300", "58030", "XX000", "42P01")),
        *((DBAPIError("", {}, FromServer(state)), False) for state in ("22P05", "23514", "42601", "22003")),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (PoolTimeout(), True),
        (KeyError("steps"), False),
    ],
)
def test_a_passing_error_is_tried_again_and_never_dead_letters_a_message(error: Exception, expected: bool) -> None:
    assert is_passing(error) is expected


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///orders.db", "mysql://localhost/orders", "nonsense"])
def test_the_services_need_postgres_and_say_so(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"postgresql\+asyncpg"):
        open_database(url)
