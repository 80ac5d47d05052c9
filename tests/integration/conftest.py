"""A system of orchestrators, reapers and workers inside the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.running import Running, running


@pytest.fixture
async def system(broker_url: str, database_url: str, namespace: str, step_queues: set[str]) -> AsyncIterator[Running]:
    step_queues.update({"Reserve", "Charge"})
    async with running(broker_url, database_url, namespace) as found:
        yield found
