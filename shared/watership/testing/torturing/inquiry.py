"""Tortures one saga: runs it plain, then in each of its branches, then each with every fault, and gathers the report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from watership.errors import ConfigurationError, DefinitionError
from watership.machine.state import Status
from watership.testing.torturing.branches import PLAIN, Branch, branches
from watership.testing.torturing.catalogue import Record, asked_for, paired_trials, single_trials
from watership.testing.torturing.points import NO_FAULT, Trial
from watership.testing.torturing.report import Finding, Report, Run, Verdict
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
        self.report = Report(cast.plan.saga, cast.seed, "")
        self._pairs, self._only = pairs, only
        self._progress, self._is_stopped = progress, is_stopped
        self._findings: dict[tuple[str, str], Finding] = {}
        self._alone: dict[str, Ending] = {}  # each branch without faults, by its name

    def hold(self) -> Report:
        """All of it."""
        began_s = time.perf_counter()
        plain = self._plain()
        if plain is not None:
            self._try_all(plain)
        self.report.findings = list(self._findings.values())
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
        self._stages(ending)
        if state is None or self._judge(ending, PLAIN)[0] is not Verdict.RIGHT:
            self._keep(PLAIN, ending, None)
            return None
        return Record(PLAIN, ending.watch.seen)

    def _refuse_what_cannot_run(self, ending: Ending) -> None:
        failure = ending.state.failure if ending.state is not None else None
        if failure is None:
            return
        if failure.code in (ConfigurationError.code, DefinitionError.code):
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
            self._stages(ending)
            records.append(Record(branch, ending.watch.seen))
        trials = self._chosen(records)
        for number, (record, trial) in enumerate(trials, start=1):
            if self._is_stopped():
                raise Stopped
            ending = self._play(record.branch, trial) if trial.faults else self._alone[trial.branch]
            self._keep(record.branch, ending, record)
            if self._progress is not None:
                self._progress(number, len(trials))

    def _chosen(self, records: list[Record]) -> list[tuple[Record, Trial]]:
        if self._only is not None:
            return asked_for(records, self._only)
        chance = random.Random(f"{self.cast.seed}:pairs")
        return [*single_trials(records), *paired_trials(records, self._pairs, chance)]

    def _play(self, branch: Branch, trial: Trial, *, records: bool = False) -> Ending:
        return Scene(self.cast, branch, trial, records=records).play()

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
            known = self._findings.get((kind, sentence))
            if known is None:
                self._findings[kind, sentence] = Finding(kind, sentence, trial.key, trial.words)
            else:
                known.runs += 1
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

    def _stages(self, ending: Ending) -> None:
        self.report.stages = merged(self.report.stages, dict.fromkeys(seen.stage for seen in ending.watch.seen))


def merged(known: list[str], newer: Iterable[str]) -> list[str]:
    """The stages of all runs in one order: what is new goes behind what it followed."""
    merged, place = list(known), 0
    for stage in newer:
        if stage in merged:
            place = merged.index(stage) + 1
        else:
            merged.insert(place, stage)
            place += 1
    return merged


def _plainly(ending: Ending) -> str:
    state = ending.state
    if state is None:
        return "it was never created"
    if state.status is Status.COMPLETED or state.failure is None:
        return state.status.value
    return f"{state.status}: {state.failure.step}: {state.failure.message or state.failure.code}"
