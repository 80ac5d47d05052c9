"""`watership bench`: the sentence that says what limits an installation."""

from __future__ import annotations

import dataclasses
import math

import pytest

from watership.benching.findings import BrokerFindings, DatabaseFindings, Findings, SagaFindings, percentile

SAGAS = SagaFindings(500, 200, 8.0, 12.0, {"orchestrator": 0.4, "worker": 0.3, "this process": 0.1}, 0.5)
FOUND = Findings(DatabaseFindings(1.0, 3.0), SAGAS, BrokerFindings(20_000, 1.5, 3.0), cores=4)


def with_sagas(**changes: object) -> Findings:
    return dataclasses.replace(FOUND, sagas=dataclasses.replace(SAGAS, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (FOUND, "nothing here is full"),
        (with_sagas(machine_busy=None), "nothing here is full"),
        (with_sagas(machine_busy=0.97), "the 4 cores of this machine limit it, busy for 97% of the time"),
        (with_sagas(busy={"orchestrator": 0.9, "worker": 0.95}), "the worker limits it, busy for 95%"),
        (with_sagas(busy={"this process": 0.99}), "this process limits it"),
        (with_sagas(sagas_per_s=9_000), "the broker limits it: 20,000 messages a second"),
        (
            dataclasses.replace(FOUND, database=DatabaseFindings(9.0, 20.0)),
            "the database limits it: a commit takes 9.0 ms",
        ),
    ],
)
def test_the_plainest_cause_is_told(found: Findings, words: str) -> None:
    assert words in found.limit()


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0], 0.99) == 1.0
    assert math.isnan(percentile([], 0.5))
