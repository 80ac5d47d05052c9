"""The table at the end of a chaos run. Pure: from the evidence and the strikes to text."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from watership.machine.changes import Elapsed, LateAct, Overdue, PivotReached, Resent, Signalled, Verified

from tests.chaos.evidence import ACCEPTED, Evidence, end_of
from tests.chaos.laws import LAWS, Breach, unreported
from tests.chaos.orders import Kind
from tests.chaos.schedule import Struck

EXAMPLES_MAX = 5


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is measured beside the evidence. ``drained_s``: None if it was not drained in time."""

    seed: int
    faults_s: float
    drained_s: float | None
    words: Mapping[str, int]


def report(evidence: Evidence, struck: Sequence[Struck], figures: Figures, breaches: Sequence[Breach]) -> str:
    """The whole report."""
    lines = [f"chaos: seed {figures.seed}, {figures.faults_s:.0f} s of faults"]
    lines += _section("faults", _faults(struck))
    ends = Counter(end_of(row) for row in evidence.rows.values())
    lines += _section("sagas", {"started": len(evidence.intents), "confirmed": len(evidence.acks), **ends})
    lines += _section("flow", _flow(evidence))
    lines += _section("what it took", _efforts(evidence, figures.words))
    drained = f"{figures.drained_s:.1f}" if figures.drained_s is not None else "not drained"
    quiet = {
        "longest without progress, s": f"{longest_silence_s(evidence):.1f}",
        "to drain after the faults, s": drained,
    }
    lines += _section("time", quiet)
    found = Counter(breach.law for breach in breaches)
    lines += _section("breaches", {law.__name__.replace("_", " "): found[law.__name__] for law in LAWS})
    shown = Counter[str]()
    for breach in breaches:
        shown[breach.law] += 1
        if shown[breach.law] <= EXAMPLES_MAX:
            lines.append(f"  {breach.law}: {breach.how}")
    return "\n".join(lines)


def stories(evidence: Evidence, breaches: Sequence[Breach]) -> str:
    """All that is known of the sagas in which laws were broken: for whoever looks for the cause."""
    lines = []
    for saga_id, order in evidence.intents.items():
        found = [breach for breach in breaches if str(saga_id) in breach.how]
        if found:
            lines += [f"{saga_id} {order}", *(f"  {breach.law}: {breach.how}" for breach in found)]
            for entry in evidence.log.get(saga_id, []):
                lines.append(f"  #{entry.seq} {entry.at_ms} {entry.cause}")
                lines += [f"      {change}" for change in entry.changes]
            lines += [f"  {effect}" for effect in evidence.effects.get(saga_id, [])]
            lines += [f"  {said}" for said in evidence.said.get(saga_id, [])]
            lines += [f"  barrier {key[1:]}: {state}" for key, state in evidence.barred.items() if key[0] == saga_id]
            lines.append(f"  called off: {evidence.called_off.get(saga_id)}")
    return "\n".join(lines)


def longest_silence_s(evidence: Evidence) -> float:
    """The longest time in which no saga's log grew, between its first entry and its last."""
    moments = sorted(entry.at_ms for entries in evidence.log.values() for entry in entries)
    return max((after - before for before, after in itertools.pairwise(moments)), default=0) / 1000


def _faults(struck: Sequence[Struck]) -> dict[str, str]:
    hits = Counter(strike.nemesis for strike in struck if not strike.missed)
    missed = Counter(strike.nemesis for strike in struck if strike.missed)
    return {
        name: f"{hits[name]}" + (f" (and {missed[name]} that could not be)" if missed[name] else "")
        for name in sorted(hits.keys() | missed.keys())
    }


def _changes(evidence: Evidence) -> Counter[type]:
    return Counter(type(change) for _, changes in evidence.histories() for change in changes)


def _flow(evidence: Evidence) -> dict[str, object]:
    changes = _changes(evidence)
    said = [saying.told for sayings in evidence.said.values() for saying in sayings]
    called_off = list(evidence.called_off.values())
    return {
        "signals sent": f"{len(said)}, of them accepted {said.count(ACCEPTED)}, without an answer {said.count(None)}",
        "signals taken": changes[Signalled],
        "pauses and waits that ended by time": changes[Elapsed],
        "pivots reached": changes[PivotReached],
        "acts that were verified": changes[Verified],
        "cancels": f"{len(called_off)}, of them accepted {called_off.count(ACCEPTED)}, without an answer {called_off.count(None)}",
        "rows behind the barrier": ", ".join(
            f"{n} {state}" for state, n in sorted(Counter(evidence.barred.values()).items())
        ),
    }


def _efforts(evidence: Evidence, words: Mapping[str, int]) -> dict[str, object]:
    changes = _changes(evidence)
    acts = Counter(
        (saga_id, effect.step)
        for saga_id, effects in evidence.effects.items()
        for effect in effects
        if effect.kind == Kind.PLAIN and effect.action == "act"
    )
    return {
        "log entries": sum(map(len, evidence.log.values())),
        "effects": sum(map(len, evidence.effects.values())),
        "starts that took more than one try": sum(tries > 1 for tries in evidence.acks.values()),
        **words,
        "commands sent again": changes[Resent],
        "acts given up as overdue": changes[Overdue],
        "late acts that were undone": changes[LateAct],
        "acts that ran twice (plain)": sum(count > 1 for count in acts.values()),
        "acts left behind by killed workers (plain)": unreported(evidence),
        "lines in Watership's ledger": evidence.late_lines,
    }


def _section(title: str, values: Mapping[str, object]) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [f"  {title}", *(f"    {name:<{width}}  {value}" for name, value in values.items())]
