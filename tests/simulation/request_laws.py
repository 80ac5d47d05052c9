"""What the laws say of what people ask for: a start, or an operator's verb, that is acknowledged as done. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from watership import codec
from watership.machine import changes as c
from watership.machine.state import SagaState
from watership.messages import AdminRequest, StartSaga

Offence = tuple[str, str]


def start_offences(start: StartSaga, state: SagaState | None, input_hash: str | None) -> Iterator[Offence]:
    """A start that was accepted. ``state``, ``input_hash``: of its saga, and of what that was started with."""
    if state is not None and start.plan is not None and state.plan_hash != start.plan:
        yield "law_07_pinned", f"it names plan {start.plan}, and its saga began on {state.plan_hash}"
    if input_hash is not None and codec.input_hash(start.saga, start.context) != input_hash:
        yield "law_11_starting_is_idempotent", "its id is taken by a saga of another input, and it was not refused"


def operator_offences(
    request: AdminRequest, *, told: bool, entries: Sequence[tuple[int, Sequence[c.Change]]]
) -> Iterator[Offence]:
    """A verb that was not refused, so far as anybody was ``told``. ``entries``: what it moved, by number."""
    marks = [change for _, changes in entries for change in changes if isinstance(change, c.Operated)]
    expected = [c.Operated(request.actor or "", request.verb.value, request.reason)]
    if marks != expected and (told or marks):
        yield "law_12_every_hand_leaves_a_mark", f"it was done, and its marks in the log are {marks}"
    moved = [seq for seq, _ in entries if request.seq is not None and seq != request.seq + 1]
    if moved:
        yield (
            "law_12_every_hand_leaves_a_mark",
            f"its author saw entry {request.seq}; it was done, and is entry {moved[0]}: the saga has moved",
        )
