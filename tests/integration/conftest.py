"""A system of orchestrators, reapers and workers inside the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.endpoints import Unavailable
from tests.support.mariadb import empty_mariadb_database, mariadb
from tests.support.running import Running, running


@pytest.fixture
async def system(broker_url: str, database_url: str, namespace: str, step_queues: set[str]) -> AsyncIterator[Running]:
    step_queues.update({"Reserve", "Charge"})
    async with running(broker_url, database_url, namespace) as found:
        yield found


@pytest.fixture(scope="session")
def mariadb_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The run's MariaDB, brought up for the first test that asks."""
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert reporter is not None
    try:
        with mariadb(reporter.write_line) as url:
            yield url
    except Unavailable as why:
        pytest.fail(str(why))


@pytest.fixture
def mariadb_url(mariadb_server: str) -> Iterator[str]:
    """A MariaDB database of this test alone, without tables."""
    with empty_mariadb_database(mariadb_server) as url:
        yield url
