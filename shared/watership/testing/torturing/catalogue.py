"""Everything that can be done to a saga, from what was seen of its runs without faults. Pure.

What comes to the same is tried once: a crash after something is a crash before the next thing that the process does, and a
step's compensation does not care which later step failed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence

from watership.errors import ConfigurationError
from watership.testing.torturing.branches import Branch
from watership.testing.torturing.points import (
    BEGINS,
    ENDED,
    GETS,
    NO_FAULT,
    SENDS,
    WAITS,
    Fault,
    Harm,
    Seen,
    Trial,
    trial_words,
)
from watership.testing.torturing.report import Cell

PAIR = " & "


@dataclasses.dataclass(frozen=True)
class Record:
    """What a branch's run without faults came to."""

    branch: Branch
    seen: Sequence[Seen]

    def faults(self) -> Iterator[tuple[Seen, Fault]]:
        """All that can be done in it. In a branch, not what comes to the same as what was done just before."""
        fresh: dict[tuple[str, Harm], bool] = {}  # by role and harm: nothing lasting was done since it was tried
        for seen in self.seen:
            role, name = seen.point.role, seen.point.name
            for harm in harms_at(name):
                repeats = fresh.get((role, harm)) or (harm is Harm.CUT and name == "publish")
                if not (self.branch.name and repeats):
                    yield seen, Fault(harm, seen.point)
                fresh[role, harm] = True
            if is_lasting(name):  # what is done to a message is another thing for each message
                fresh = {key: value for key, value in fresh.items() if key[0] != role}

    def trial(self, *faults: Fault) -> Trial:
        """A trial of it, with its words."""
        about = {seen.point: seen.about for seen in self.seen}
        return Trial(self.branch.name, faults, trial_words(self.branch.name, faults, about))

    def cell(self, fault: Fault) -> Cell:
        """Where a fault stands in the picture."""
        seen = next(seen for seen in self.seen if seen.point == fault.point)
        return Cell(seen.stage, seen.point.role, fault.harm.value, seen.point.name, seen.place)


def harms_at(name: str) -> Iterator[Harm]:
    """What can be done at a point."""
    if name.startswith(SENDS):
        yield from (Harm.LOST, Harm.UNTOLD)
        if "news" not in name and "event" not in name:
            yield Harm.LATE
            if "command" not in name:  # nobody copies a command: who sends it twice knows that it may run twice
                yield Harm.TWICE
        return
    if name.startswith(GETS):
        yield Harm.CUT
        return
    yield Harm.CRASH
    if name in ("commit", "publish") or name.endswith((BEGINS, WAITS, ENDED, ": COMMIT")):
        yield Harm.STOP
    if name in ("publish", "ack", "reject"):
        yield Harm.CUT


def is_lasting(name: str) -> bool:
    """Whether a process does something at this point that outlives it."""
    return name in ("commit", "publish", "ack", "reject") or name.endswith((BEGINS, WAITS)) or ": " in name


def single_trials(records: Sequence[Record]) -> Iterator[tuple[Record, Trial]]:
    """Each branch alone, and then each fault by itself; what comes to the same only once."""
    tried: set[tuple[object, ...]] = set()
    for record in records:
        yield record, record.trial()
    for record in records:
        for seen, fault in record.faults():
            name, point = seen.stage.rpartition(".")[0], seen.point
            alike = (seen.stage, record.branch.mode(name), point.role, point.name, seen.place, fault.harm)
            if alike not in tried:
                tried.add(alike)
                yield record, record.trial(fault)


def paired_trials(records: Sequence[Record], count: int, chance: random.Random) -> Iterator[tuple[Record, Trial]]:
    """Two faults in one run, ``count`` times. The second may not come to pass: the first one changed the run."""
    for _ in range(count):
        record = chance.choice(records)
        faults = [fault for _, fault in record.faults()]
        one, other = sorted(chance.sample(range(len(faults)), 2))
        if faults[one].point != faults[other].point:
            yield record, record.trial(faults[one], faults[other])


def asked_for(records: Sequence[Record], only: str) -> list[tuple[Record, Trial]]:
    """The trials of this key; else those that have these words in their key. Raises `ConfigurationError` for none."""
    by_name = {record.branch.name: record for record in records}
    branch, colon, rest = only.partition(": ")
    record, keys = (by_name[branch], rest) if colon and branch in by_name else (by_name[""], only)
    if only in by_name or only == NO_FAULT:
        record = by_name.get(only, by_name[""])
        return [(record, record.trial())]
    known: Mapping[str, Fault] = {fault.key: fault for _, fault in record.faults()}
    if all(key in known for key in keys.split(PAIR)):
        return [(record, record.trial(*(known[key] for key in keys.split(PAIR))))]
    found = [(record, trial) for record, trial in single_trials(records) if only in trial.key]
    if not found:
        example = next((trial.key for _, trial in single_trials(records) if trial.faults), NO_FAULT)
        raise ConfigurationError(f"only={only!r}: nothing that can be tried is called that; a key is like {example!r}")
    return found
