"""Tortures one saga: runs it plain, then in each of its branches, then each with every fault, and gathers the report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from watership.errors import ConfigurationError, DefinitionError
from watership.machine.nodes import names
from watership.machine.plan import Plan
from watership.machine.state import Status
from watership.testing.torturing.branches import PLAIN, Branch, branches
from watership.testing.torturing.catalogue import Record, asked_for, paired_trials, single_trials
from watership.testing.torturing.points import NO_FAULT, Harm, Trial
from watership.testing.torturing.report import Finding, Kind, Run, TortureReport, Verdict
from watership.testing.torturing.scene import Cast, Ending, Scene
from watership.testing.torturing.verdict import Evidence, judged

# Who is told how far it is: how many runs of how many.
Progress = Callable[[int, int], object]


class Stopped(Exception):
    """Whoever asked for the torture waits for it no more."""


class Inquiry:
    """One torture."""

    def __init__(
        self,
        cast: Cast,
        *,
        pairs: int,
        only: str | None,
        progress: Progress | None,
        is_stopped: Callable[[], bool],
    ) -> None:
        self.cast = cast
        self.report = TortureReport(cast.plan.saga, cast.seed, "", stages=stages_of(cast.plan))
        self._pairs, self._only = pairs, only
        self._progress, self._is_stopped = progress, is_stopped
        self._shown_by: dict[tuple[Kind, str], list[Trial]] = {}
        self._alone: dict[str, Ending] = {}  # each branch without faults, by its name

    def hold(self) -> TortureReport:
        """All of it."""
        began_s = time.perf_counter()
        plain = self._plain()
        if plain is not None:
            self._try_all(plain)
        self.report.findings = self._findings()
        self.report.elapsed_s = time.perf_counter() - began_s
        return self.report

    # --- without faults

    def _plain(self) -> Record | None:
        """The run without any fault. None: it is wrong already, and every other one would be for the same reason."""
        ending = self._alone[""] = self._play(PLAIN, Trial(words=NO_FAULT), records=True)
        self._refuse_what_cannot_run(ending)
        state = ending.state
        self.report.checked = ending.has_check
        self.report.plain = _plainly(ending)
        if state is None or self._judge(ending, PLAIN)[0] is not Verdict.RIGHT:
            self._keep(PLAIN, ending, None)
            return None
        return Record(PLAIN, ending.watch.seen)

    def _refuse_what_cannot_run(self, ending: Ending) -> None:
        failure = ending.state.failure if ending.state is not None else None
        if failure is None:
            return
        if failure.type_name in (ConfigurationError.__name__, DefinitionError.__name__):
            raise ConfigurationError(f"step {failure.step} cannot run here: {failure.message}")
        if failure.type_name == "NotImplementedError":
            raise ConfigurationError(
                f"step {failure.step} asked for a socket, a thread or a subprocess ({failure.message or 'not implemented'}): "
                f"torture runs in virtual time and has none. Give it a stand-in, steps={{{failure.step!r}: succeeds()}}, a "
                f"container with fakes, or a database of watership.testing.database()"
            )

    # --- with them

    def _try_all(self, plain: Record) -> None:
        records = [plain]
        for branch in branches(self.cast.definition):
            ending = self._play(branch, Trial(branch.name, words=branch.name), records=True)
            self._alone[branch.name] = ending
            records.append(Record(branch, ending.watch.seen))
        trials = self._chosen(records)
        for number, (record, trial) in enumerate(trials, start=1):
            if self._is_stopped():
                raise Stopped
            ending = self._alone[trial.branch]
            if len(trials) == 1:
                ending = self._play(record.branch, trial, trace=self.report.trace.append)
            elif trial.faults:
                ending = self._play(record.branch, trial)
            self._keep(record.branch, ending, record)
            if self._progress is not None:
                self._progress(number, len(trials))

    def _chosen(self, records: list[Record]) -> list[tuple[Record, Trial]]:
        if self._only is not None:
            return asked_for(records, self._only)
        chance = random.Random(f"{self.cast.seed}:pairs")
        return [*single_trials(records), *paired_trials(records, self._pairs, chance)]

    def _play(
        self, branch: Branch, trial: Trial, *, records: bool = False, trace: Callable[[str], None] | None = None
    ) -> Ending:
        return Scene(self.cast, branch, trial, records=records, trace=trace).play()

    def _findings(self) -> list[Finding]:
        """The gravest first; of each, the run that shows it most plainly."""
        found = []
        for (kind, sentence), trials in self._shown_by.items():
            plainest = min(trials, key=_telling)
            found.append(Finding(kind, sentence, plainest.key, plainest.words, len(trials)))
        return sorted(found, key=lambda finding: _SEVERITY.index(finding.kind))

    # --- what came of it

    def _judge(self, ending: Ending, branch: Branch) -> tuple[Verdict, list[Any]]:
        evidence = Evidence(
            state=ending.state,
            journal=ending.journal,
            stuck=ending.stuck,
            unbalanced=ending.unbalanced,
            broken=(*ending.watch.offences, *ending.bugs),
            has_check=ending.has_check,
            may_park=branch.may_park,
        )
        return judged(self.cast.plan, evidence)

    def _keep(self, branch: Branch, ending: Ending, record: Record | None) -> None:
        trial, state = ending.trial, ending.state
        verdict, wrong = self._judge(ending, branch)
        for kind, sentence in wrong:
            self._shown_by.setdefault((kind, sentence), []).append(trial)
        self.report.runs.append(
            Run(
                key=trial.key,
                words=trial.words,
                verdict=verdict,
                status=state.status.value if state is not None else "",
                parked_reason=state.parked_reason if state is not None else None,
                branch=trial.branch,
                cells=tuple(record.cell(fault) for fault in trial.faults) if record is not None else (),
            )
        )


def stages_of(plan: Plan) -> list[str]:
    """What a saga can be at, on its way there and then on its way back."""
    found = [name for node in plan.nodes for name in names(node)]
    there = [stage for name in found for stage in (f"{name}.act", f"{name}.verify", name)]
    back = [f"{name}.compensate" for name in reversed(found)]
    return ["start", *there, "completed", *back, "compensated"]


_SEVERITY = (Kind.ENGINE, Kind.STUCK, Kind.UNBALANCED, Kind.HALF, Kind.PARKED, Kind.SUSPICIOUS)
_TELLING = tuple(Harm)


def _telling(trial: Trial) -> tuple[int, bool, int]:
    """How plainly a run shows something: the fewest faults, on the saga's straight way, of the plainest kind."""
    return len(trial.faults), bool(trial.branch), sum(_TELLING.index(fault.harm) for fault in trial.faults)


def _plainly(ending: Ending) -> str:
    state = ending.state
    if state is None:
        return "it was never created"
    if state.status is Status.COMPLETED or state.failure is None:
        return state.status.value
    return f"{state.status}: {state.failure.step}: {state.failure.message or state.failure.code}"
