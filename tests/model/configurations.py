"""What the model is asked: its properties, the configurations that are searched, and what is expected of each.

It must never know how a search is run. The words of the flags are in `state.pml`, of the properties in `properties.pml`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

PROPERTIES = {
    101: "law 1: a command is published only after its transition committed",
    102: "law 1: what is awaited is confirmed, or owed, or its cause comes again",
    301: "law 3: COMPENSATING is committed before the first undoing is sent",
    302: "law 3: no act is decided after the turn",
    303: "law 3: no act is published after the turn by an engine that stood still",
    401: "law 4: an undoing begins when all later steps are undone",
    402: "law 4, to the letter: and so does each of its retries",
    403: "law 4: without duplicates, effects are taken back in reverse order",
    501: "law 5: at rest nothing of COMPENSATED stands, and all of COMPLETED",
    601: "law 6: one outcome for an attempt",
    602: "law 6: a late act is undone again",
    701: "promise 1: at rest, the saga is completed, compensated or parked",
    702: "promise 1: how it ended, or that it is parked, was told",
    703: "promise 1: every run comes to rest there (a formula of temporal logic)",
    801: "barrier: an effect at most once",
    802: "barrier: no effect after its undoing",
    803: "barrier: taken back at most once",
    901: "without the barrier: no act takes effect after its undoing",
}
OPTIONAL = {303: "NO_OLD_ACTS", 402: "STRICT_RETRIES", 403: "NO_LATE_ACTS", 901: "EXPECT_LATE_ACT"}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A size of the model and the faults that it may have. ``formula``: the search is for 703, by a never claim."""

    name: str
    flags: Mapping[str, int]
    formula: bool = False


@dataclasses.dataclass(frozen=True)
class NotPromised:
    """A property that does not hold in a configuration, and is not promised there: it must be seen to be broken."""

    configuration: Configuration
    broken: int
    words: str


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A mutilated model, and the property that must catch it in a configuration."""

    name: str
    caught_by: int
    flags: Mapping[str, int]


def kinds(*names: str) -> dict[str, int]:
    """Kinds of faults that are allowed."""
    return dict.fromkeys(names, 1)


ALL_KINDS = kinds("CRASH", "CUT", "DUPLICATE", "LOSE", "UNCONFIRMED", "RETURNED", "EARLY", "PAUSE", "GAP", "DATABASE")
ONE = {"ORCHESTRATORS": 1}
OVERTAKEN = {"FAULTS": 1, "BATCH": 2, "OPERATOR": 1, "MUTANT_BACKED_BY_A_COPY": 1, **ONE, **kinds("CRASH")}

CONFIGURATIONS = (
    Configuration("crash", {"FAULTS": 1, "OPERATOR": 1, **kinds("CRASH")}),
    Configuration("crashes", {"FAULTS": 2, "ACTS_MAX": 2, **ONE, **kinds("CRASH", "LOSE")}),
    Configuration("pauses", {"FAULTS": 2, "NO_OLD_ACTS": 1, **kinds("PAUSE", "LOSE")}),
    Configuration("gap", {"FAULTS": 1, "OPERATOR": 1, **kinds("PAUSE", "GAP")}),
    Configuration("cuts", {"FAULTS": 2, **kinds("CUT")}),
    Configuration("channel", {"FAULTS": 2, **kinds("DUPLICATE", "LOSE", "UNCONFIRMED")}),
    Configuration("debts", {"FAULTS": 2, **ONE, **kinds("CRASH", "UNCONFIRMED", "RETURNED")}),
    Configuration("deadlines", {"FAULTS": 2, **ONE, **kinds("EARLY", "DUPLICATE", "CRASH", "UNCONFIRMED", "LOSE")}),
    Configuration("database", {"FAULTS": 2, **kinds("DATABASE", "LOSE", "RETURNED")}),
    Configuration(
        "batches", {"FAULTS": 1, "BATCH": 2, "OPERATOR": 1, **ONE, **kinds("CRASH", "CUT", "DUPLICATE", "EARLY")}
    ),
    Configuration(
        "retries", {"FAULTS": 1, "MISHAPS": 3, "ACTS_MAX": 2, **ONE, **kinds("CRASH", "DUPLICATE", "EARLY", "LOSE")}
    ),
    Configuration("three steps", {"STEPS": 3, "FAULTS": 2, **ONE, **kinds("DUPLICATE", "EARLY", "LOSE")}),
    Configuration(
        "in order", {"STEPS": 3, "FAULTS": 2, "MISHAPS": 2, "ACTS_MAX": 2, "NO_LATE_ACTS": 1, **kinds("LOSE")}
    ),
    Configuration("two workers", {"WORKERS": 2, "FAULTS": 2, **ONE, **kinds("DUPLICATE", "EARLY", "LOSE")}),
    Configuration("barrier", {"BARRIER": 1, "FAULTS": 2, **ONE, **kinds("CRASH", "DUPLICATE", "EARLY", "LOSE")}),
    Configuration(
        "barrier, two workers",
        {"BARRIER": 1, "WORKERS": 2, "FAULTS": 1, **ONE, **kinds("CRASH", "DUPLICATE", "EARLY", "CUT")},
    ),
    Configuration("any one fault", {"FAULTS": 1, "OPERATOR": 1, **ALL_KINDS}),
    Configuration("ends", {"FAULTS": 1, **ONE, **ALL_KINDS}, formula=True),
)

NOT_PROMISED = (
    NotPromised(
        Configuration("strict order", {"FAULTS": 1, "MISHAPS": 2, "STRICT_RETRIES": 1, **ONE, **kinds("DUPLICATE")}),
        402,
        "a retry of a compensation that has begun does not wait for a late act of a later step: it may have had its effect",
    ),
    NotPromised(
        Configuration("old act", {"FAULTS": 1, "NO_OLD_ACTS": 1, **kinds("GAP")}),
        303,
        "between the look at the clock and the send is a gap that no orchestrator can close",
    ),
    NotPromised(
        Configuration("late act", {"FAULTS": 1, "EXPECT_LATE_ACT": 1, **kinds("GAP")}),
        901,
        "so an old act may take effect after its undoing: the barrier is what closes the gap",
    ),
)

MUTANTS = (
    Mutant("PUBLISHES_BEFORE_COMMIT", 101, {"FAULTS": 0, **ONE}),
    Mutant("ACKNOWLEDGES_BEFORE_PUBLISH", 102, {"FAULTS": 1, **ONE, **kinds("CRASH")}),
    Mutant("KNOWN_MEANS_SENT", 102, {"FAULTS": 1, **ONE, **kinds("CRASH")}),
    Mutant("BACKED_BY_A_COPY", 102, {"FAULTS": 2, **kinds("CUT")}),
    Mutant("OWES_NOTHING", 102, {"FAULTS": 1, **ONE, **kinds("UNCONFIRMED")}),
    Mutant("OWES_NOTHING", 702, {"FAULTS": 1, **ONE, **kinds("UNCONFIRMED")}),
    Mutant("REAPER_OWES_AFTER_COMMIT", 102, {"FAULTS": 0, "MISHAPS": 2, **ONE}),
    Mutant("TURNS_AFTER_SENDING", 301, {"FAULTS": 0, **ONE}),
    Mutant("RETRIES_ACTS_AFTER_THE_TURN", 302, {"FAULTS": 0, "ACTS_MAX": 2, "OPERATOR": 1, **ONE}),
    Mutant("PUBLISHES_OLD_BATCHES", 303, {"FAULTS": 1, "NO_OLD_ACTS": 1, **kinds("PAUSE")}),
    Mutant("UNDOES_ALL_AT_ONCE", 401, {"FAULTS": 0, "STEPS": 3, **ONE}),
    Mutant("UNDOES_ALL_AT_ONCE", 403, {"FAULTS": 0, "STEPS": 3, "NO_LATE_ACTS": 1, **ONE}),
    Mutant("DOES_NOT_WAIT_AT_THE_TURN", 401, {"FAULTS": 0, "OPERATOR": 1, **ONE}),
    Mutant("UNDOES_ONLY_DONE", 501, {"FAULTS": 0, **ONE}),
    Mutant("TRUSTS_A_REDELIVERED_FAILURE", 501, {"FAULTS": 1, **ONE, **kinds("CRASH")}),
    Mutant("SENDS_AGAIN_WITHOUT_DOUBT", 501, {"FAULTS": 2, **ONE, **kinds("CRASH", "LOSE")}),
    Mutant("APPLIES_ANY_REPLY", 601, {"FAULTS": 1, "ACTS_MAX": 2, "MISHAPS": 2, **ONE, **kinds("DUPLICATE")}),
    Mutant("FORGETS_LATE_ACTS", 602, {"FAULTS": 1, **ONE, **kinds("DUPLICATE")}),
    Mutant("UNDOES_ONCE", 602, {"FAULTS": 1, **ONE, **kinds("DUPLICATE")}),
    Mutant("NO_DEADLINES", 701, {"FAULTS": 1, **ONE, **kinds("LOSE")}),
    Mutant("NO_DEADLINES", 703, {"FAULTS": 1, **ONE, **kinds("LOSE")}),
    Mutant("BARRIER_WITHOUT_DUPLICATES", 801, {"BARRIER": 1, "FAULTS": 1, **ONE, **kinds("DUPLICATE")}),
    Mutant(
        "BARRIER_WITHOUT_EMPTY_ROWS",
        802,
        {"BARRIER": 1, "FAULTS": 2, "OPERATOR": 1, **ONE, **kinds("EARLY", "DUPLICATE")},
    ),
    Mutant("ACKNOWLEDGES_WHEN_OVERTAKEN", 102, {"FAULTS": 2, **kinds("DUPLICATE", "UNCONFIRMED")}),
    # An operator's turn is owed by itself; here it stands for the failure of a group's other member, which only its message backs.
    Mutant("FORGETS_WHAT_WAS_OVERTAKEN", 102, OVERTAKEN),
    Mutant("FORGETS_WHAT_WAS_OVERTAKEN", 702, OVERTAKEN),
    Mutant("FORGETS_TO_TELL", 702, {"FAULTS": 3, **ONE, **kinds("RETURNED", "DUPLICATE", "CRASH")}),
    Mutant("BARRIER_UNDOES_EACH_GENERATION", 803, {"BARRIER": 1, "FAULTS": 1, **ONE, **kinds("DUPLICATE")}),
    Mutant("BARRIER_WITHOUT_UNDO_ROWS", 803, {"BARRIER": 1, "FAULTS": 1, **ONE, **kinds("DUPLICATE")}),
)
