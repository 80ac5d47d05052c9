"""What a reply that was refused still says: that a run of its command was made, and its outcome is not known. Pure.

A worker whose reply is too large, or malformed, sends the same again for each attempt, and the saga would wait for ever:
its deadline passes, the command is sent again, and each time the act is run. So where the reply can be read as far as
which run it is of, that run is judged as unknown, with what is wrong about the reply as its reason. That is safe. The
envelope is all that is believed of it; if its attempt is not awaited, it is late like any other reply; and unknown
claims nothing: an act in doubt is verified, tried again or undone.
"""

from __future__ import annotations

import json
from typing import Any

import pydantic

from watership import codec
from watership.bus.protocol import Delivery
from watership.errors import InvalidPayload, LimitExceeded, error_lineage
from watership.messages import ErrorOnWire, ReplyOutcome, StepReply, read

READ_BYTES_MAX = 16 * codec.MESSAGE_BYTES_MAX  # reading more would hold up everything else
ENVELOPE = ("saga_id", "step", "action", "attempt", "run")


def unknown_run(delivery: Delivery) -> StepReply | None:
    """The run that a refused reply is of, as unknown; None if the reply can be read, or does not say so much."""
    try:
        read(StepReply.kind, delivery.body)
        return None  # refused for another reason: its outcome is for a person to bring in
    except (InvalidPayload, LimitExceeded) as error:
        why = error
    if len(delivery.body) > READ_BYTES_MAX:
        return None
    try:
        found = json.loads(delivery.body)  # takes NaN, and integers of any size, where ours does not
        envelope = {name: found[name] for name in ENVELOPE}
        codec.check(envelope, what="a refused reply's envelope")
        return StepReply.model_validate({**envelope, "outcome": ReplyOutcome.UNKNOWN, "error": _told(why)})
    except (ValueError, TypeError, KeyError, RecursionError, pydantic.ValidationError):
        return None


def _told(why: InvalidPayload | LimitExceeded) -> dict[str, Any]:
    kind = type(why)
    text = f"its reply was refused: {why}".replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:2_000]
    error = ErrorOnWire(code=why.code, type_name=kind.__name__, message=text, lineage=(why.code, *error_lineage(kind)))
    return error.model_dump()
