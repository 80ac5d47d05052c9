"""What torture tells: each run, what was found, and how to see it again."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Generic

from watership.machine.state import Status
from watership.saga.models import ContextT
from watership.saga.storage.protocol import SagaLogEntry


@dataclasses.dataclass(frozen=True)
class TorturedSaga(Generic[ContextT]):
    """How one run ended, for your check. ``status``: COMPLETED, and all must be applied, or COMPENSATED, and all undone.

    ``history`` has a line for everything that befell a step. ``trial`` says in words what went wrong in this run.
    """

    saga_id: uuid.UUID
    status: Status
    context: ContextT
    history: Sequence[SagaLogEntry]
    trial: str


class Verdict(StrEnum):
    """How a run is judged."""

    RIGHT = "right"
    PARKED = "parked"  # it waits for a person, and nothing else is wrong
    WRONG = "wrong"


class Kind(StrEnum):
    """What is wrong."""

    UNBALANCED = "unbalanced"  # the user's check says so
    PARKED = "parked"
    STUCK = "stuck"  # it did not end
    HALF = "half"  # neither fully applied nor fully undone
    SUSPICIOUS = (
        "suspicious"  # a handler had its effect where it should not have, as far as can be told without a check
    )
    ENGINE = "engine"  # a promise of the engine is broken


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Where in the picture a run belongs: what the saga was at, who was hurt, how, and which point of that kind."""

    stage: str
    role: str
    harm: str
    name: str
    place: int


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One run. ``key`` asks for it again; ``words`` say what went wrong; ``cells``: see `Cell`."""

    key: str
    words: str
    verdict: Verdict
    status: str
    parked_reason: str | None = None
    branch: str = ""
    cells: tuple[Cell, ...] = ()


@dataclasses.dataclass(slots=True)
class Finding:
    """Something to mend. ``key`` and ``fault`` are of the first run that shows it, ``runs`` counts all that do."""

    kind: Kind
    sentence: str
    key: str
    fault: str
    runs: int = 1

    def __str__(self) -> str:
        seen = f", and in {self.runs - 1} more runs" if self.runs > 1 else ""
        return f"{self.sentence}\n    with: {self.fault}{seen}\n    again: only={self.key!r}"


@dataclasses.dataclass
class TortureReport:
    """What came of torturing a saga. ``str(report)`` is the picture and the findings; ``ok``: there are none.

    ``elapsed_s`` is real time. ``plain`` says how the saga ends when nothing goes wrong. ``trace``: where ``only`` asked for
    a single run, what happened in it, with the virtual time in seconds.
    """

    saga: str
    seed: int | str
    plain: str
    runs: list[Run] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    stages: list[str] = dataclasses.field(default_factory=list)
    trace: list[str] = dataclasses.field(default_factory=list)
    checked: bool = False
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Every run ended right."""
        return not self.findings

    @property
    def parked(self) -> list[Run]:
        """The runs that wait for a person, those included for which that is right (an unknown pivot)."""
        return [run for run in self.runs if run.parked_reason is not None]

    def __str__(self) -> str:
        from watership.testing.torturing.picture import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from watership.testing.torturing.picture import rendered

        return rendered(self)

    def to_data(self) -> dict[str, Any]:
        """It as JSON data."""
        return {
            "saga": self.saga,
            "seed": self.seed,
            "ok": self.ok,
            "plain": self.plain,
            "runs": len(self.runs),
            "parked": len(self.parked),
            "elapsed_s": round(self.elapsed_s, 3),
            "trace": self.trace,
            "findings": [_finding_data(finding) for finding in self.findings],
        }


def _finding_data(finding: Finding) -> Mapping[str, Any]:
    return {**dataclasses.asdict(finding), "kind": finding.kind.value}
