"""Judges a run: right, parked, or wrong, and what is to be mended. Pure."""

from __future__ import annotations

import dataclasses

from watership.machine.plan import Plan
from watership.machine.state import SagaState
from watership.testing.torturing.journal import Journal, suspicions, unkept
from watership.testing.torturing.report import Kind, Verdict


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a run. ``has_check``: the user's own check has the last word on what handlers did."""

    state: SagaState | None
    journal: Journal
    stuck: str | None
    unbalanced: str | None
    broken: tuple[str, ...]  # promises of the engine, and its errors
    has_check: bool
    may_park: bool


def judged(plan: Plan, evidence: Evidence) -> tuple[Verdict, list[tuple[Kind, str]]]:
    """The verdict, and each thing that is wrong in a sentence that does not name the fault."""
    state = evidence.state
    wrong: list[tuple[Kind, str]] = [(Kind.ENGINE, sentence) for sentence in evidence.broken]
    if evidence.stuck is not None or state is None:
        wrong.append((Kind.STUCK, f"the saga does not end: {evidence.stuck or 'it was never created'}"))
        return Verdict.WRONG, wrong
    if evidence.unbalanced is not None:
        wrong.append((Kind.UNBALANCED, f"{state.status}, but your check says: {evidence.unbalanced}"))
    if not evidence.has_check:
        wrong.extend((Kind.HALF, sentence) for sentence in unkept(plan, state, evidence.journal))
        wrong.extend((Kind.SUSPICIOUS, suspicion.sentence) for suspicion in suspicions(evidence.journal))
    if state.parked_reason is None:
        return (Verdict.WRONG if wrong else Verdict.RIGHT), wrong
    if not evidence.may_park:
        wrong.append((Kind.PARKED, f"the saga is parked, {state.parked_reason}"))
    only_parked = all(kind is Kind.PARKED for kind, _ in wrong)
    return (Verdict.PARKED if only_parked else Verdict.WRONG), wrong
