"""What law 5 says of doubt: a command that may run elsewhere, or did, is not over by one run's word. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from watership.machine import changes as c
from watership.machine.state import Action, Outcome
from watership.messages import StepReply

from tests.simulation.evidence import Entry

LAW = "law_05_in_doubt_means_undone"
Offence = tuple[str, str]


def offences(
    change: c.Change, cause: str, earlier: Sequence[Entry], replies: Mapping[str, StepReply]
) -> Iterator[Offence]:
    """Doubt that a new change forgets. ``earlier``: the entries before it; ``replies``: by run."""
    match change:
        case c.Replied(outcome=Outcome.FAILED) if change.action is not Action.VERIFY:
            yield from _failed(change, earlier, replies.get(change.run))
        case c.Verified(outcome=Outcome.FAILED):
            yield from _not_done(change, earlier, replies)
        case c.Postponed():
            yield from _refused(change, replies.get(cause.rsplit(":", 1)[-1]))
        case _:
            pass


def _failed(change: c.Replied, earlier: Sequence[Entry], reply: StepReply | None) -> Iterator[Offence]:
    """The failure of a command that may have been delivered before speaks for one run only."""
    doubtful = any(_is_doubtful(one) for one in _of_attempt(earlier, change.step, change.action, change.attempt))
    doubtful = doubtful or (reply is not None and reply.redelivered)
    if doubtful and not getattr(reply, "certain", False):
        yield LAW, f"{change.action} {change.step} may have run before; its failure is taken for certain"


def _not_done(change: c.Verified, earlier: Sequence[Entry], replies: Mapping[str, StepReply]) -> Iterator[Offence]:
    """That an act had no effect is no proof as long as another delivery of its command may still run."""
    for one in _of_attempt(earlier, change.step, Action.ACT, change.attempt):
        reply = replies.get(one.run) if isinstance(one, c.Replied) else None
        if _is_doubtful(one) or (reply is not None and reply.redelivered):
            yield LAW, f"{change.step} may still run, since {one.kind}, and that it is not done is believed"


def _refused(change: c.Postponed, reply: StepReply | None) -> Iterator[Offence]:
    """Who does not serve a step says nothing of those who had its command before."""
    if reply is not None and reply.redelivered and not change.doubtful:
        yield LAW, f"{change.action} {change.step} was delivered before, and that is forgotten"


Sent = c.Resent | c.Postponed | c.Replied


def _of_attempt(entries: Sequence[Entry], step: str, action: Action, attempt: int) -> Iterator[Sent]:
    for entry in entries:
        for change in entry.changes:
            if isinstance(change, Sent) and (change.step, change.action, change.attempt) == (step, action, attempt):
                yield change


def _is_doubtful(change: Sent) -> bool:
    return bool(change.redelivered) if isinstance(change, c.Replied) else change.doubtful
