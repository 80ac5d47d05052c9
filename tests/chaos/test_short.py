"""A short chaos run: every kind of fault that can be made here, once or more, within a minute. `make chaos` is the long one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.ground import Ground
from tests.chaos.guardian import Guardian
from tests.chaos.nemeses import Nemesis
from tests.chaos.run import Options, run

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

SEED = int(os.environ.get("CHAOS_SEED", "20261125"))
FAULTS_S = 36.0
# A minute is short: what takes a server away comes once, and not for long.
SHORT = {"processes": (9.0, 15.0), "links": (3.0, 8.0), "broker": (60.0, 90.0), "database": (60.0, 90.0)}
HOLD_S = {"broker": (0.0, 4.0), "database": (0.0, 1.0), "disk": (2.0, 3.0)}


def shortened(nemeses: Sequence[Nemesis]) -> Sequence[Nemesis]:
    """The same nemeses, at a quicker pace."""
    for nemesis in nemeses:
        nemesis.every_s = SHORT.get(nemesis.group, (90.0, 120.0))
        nemesis.for_s = HOLD_S.get(nemesis.group, (nemesis.for_s[0], min(nemesis.for_s[1], 14.0)))
    return nemeses


async def test_no_fault_loses_a_saga_or_leaves_one_stuck(ground: Ground, guardian: Guardian, tmp_path: Path) -> None:
    cast = {"orchestrator": 2, "reaper": 2, "worker": 2, "client": 1}
    options = Options(SEED, FAULTS_S, sagas=700, cast=cast, drain_within_s=90, adjust=shortened)
    outcome = await run(options, ground, guardian, tmp_path, say=print)
    print(outcome.text)  # noqa: T201 - shown where it fails
    assert not outcome.fallen, "\n".join(outcome.fallen)
    assert not outcome.breaches, outcome.text
    assert outcome.drained_s is not None, outcome.text
