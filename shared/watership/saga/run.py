"""One run of a handler, seen from inside: its context before and now, and what a barrier decided in it.

For `execution`, which makes it, and `barrier`, which finds it. It must never know a database or a container.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import pydantic

from watership import codec
from watership.errors import AlreadyHandled, InvalidPayload, LimitExceeded
from watership.response import Response
from watership.saga.models import Shape, patch_between
from watership.saga.step import StepEvent, StepRun

EVENTS_MAX = 100  # of one run
# What a run leaves behind goes into one message, beside its envelope and an error's words.
REPLY_BYTES_MAX = codec.MESSAGE_BYTES_MAX - 65_536


def _never() -> bool:
    return False


@dataclasses.dataclass(slots=True, eq=False)
class Block:
    """A barrier's block, and what became of its transaction.

    ``patch``, ``response`` and ``told`` are what it wrote for later runs of the same action, once it has ``ended``.
    ``answers``: a response was set inside it, and ``answer`` is that object; so are ``events``. ``failed``: it ended by an
    error, and was rolled back. ``abandoned``: its run has ended, so that no commit may come any more.
    """

    ended: bool = False
    patch: dict[str, Any] = dataclasses.field(default_factory=dict)
    response: Any = None
    answers: bool = False
    answer: Any = None
    events: tuple[StepEvent, ...] = ()
    told: tuple[dict[str, Any], ...] = ()
    failed: bool = False
    abandoned: bool = False
    committing: bool = False  # a commit was begun: from here only the database knows whether it took place
    commit_error: BaseException | None = None  # what that came to, if it did not say "committed"
    rolled_back: bool = False
    is_open: Callable[[], bool] = _never  # its transaction is there still: no commit and no rollback of it came back

    @property
    def committed(self) -> bool:
        """The database said so. If not, it may be committed all the same, once a commit was begun."""
        return self.committing and self.commit_error is None and not self.is_open()


@dataclasses.dataclass(slots=True, eq=False)
class HandlerRun:
    """What is known of the run that a handler is in.

    ``whole``: the context as the run found it, with the fields that this class does not have; ``before``: the same, as JSON
    data of its class, where that had to be written down at once; ``still``: what the context held then, if nothing of it
    could be changed in place; ``strays``: attributes that are no fields, and were there before. ``acted``: the saga's log has the
    act as done, so that what it changed is in the context. ``block_error``: what the last block that failed did so by; another
    may be there since.
    """

    step: StepRun
    context: Any
    shape: Shape[Any]
    whole: Mapping[str, Any]
    still: dict[str, Any] | None
    before: dict[str, Any] | None = None
    acted: bool = False
    strays: frozenset[str] = frozenset()
    block: Block | None = None
    block_error: BaseException | None = None
    handled: AlreadyHandled | None = None

    @classmethod
    def of(
        cls,
        step: StepRun,
        context: Any,
        shape: Shape[Any],
        whole: Mapping[str, Any],
        still: dict[str, Any] | None,
        *,
        acted: bool = False,
    ) -> HandlerRun:
        """A run that begins with this context. Raises `InvalidPayload` if it cannot be written as JSON."""
        if still is not None:
            return cls(step, context, shape, whole, still, None, acted)
        return cls(step, context, shape, whole, None, shape.dump(context), acted, shape.strays(context))

    @property
    def where(self) -> str:
        """The run in words, for a message."""
        return f"saga {self.step.saga_id}, step {self.step.step}"

    def uncommitted(self) -> tuple[str, BaseException | None] | None:
        """What is to be said if the handler returns now, and its barrier's transaction is not known to be committed."""
        block, failed_by = self.block, self.block_error
        if block is None and failed_by is not None:
            return "its barrier's block failed; let the error leave the handler, or try in another block", failed_by
        if block is None or block.committed:
            return None
        if block.committing:
            return "the commit of its barrier's transaction failed, or was not awaited", block.commit_error
        was = "rolled back, not committed" if block.rolled_back else "not committed"
        how = "commit after the block: async with session.begin(), barrier(session): ..."
        return f"the transaction of its barrier was {was}; {how}", None

    def patch(self) -> dict[str, Any]:
        """What the run changed so far. Raises `InvalidPayload` or `LimitExceeded` if it could not be kept."""
        if self.still is not None and self.shape.is_as_it_was(self.context, self.still):
            return {}  # which most steps do: neither context is written down then
        if self.before is None:
            self.before = self.shape.dump(self.shape.as_it_was(self.context, self.still or {}))
        strays = self.shape.strays(self.context)
        if strays and (strays := strays - self.strays):
            raise InvalidPayload(
                f"{self.where}: {', '.join(sorted(strays))} was set on the context, and {self.shape.cls.__name__} has no "
                f"such field, so it would be lost: declare it, or correct its name"
            )
        patch = patch_between(self.before, self.shape.dump(self.context))
        if patch:
            codec.encode_context({**self.whole, **patch}, what=f"{self.where}: the context")
        return patch

    def patch_if_possible(self) -> dict[str, Any] | None:
        """The same of a run that did not end well: what its block stored, else what it changed and can be kept."""
        if self.block is not None and self.block.ended:
            return self.block.patch or None
        try:
            return self.patch() or None
        except (InvalidPayload, LimitExceeded):
            return None

    def restore(self, patch: Mapping[str, Any]) -> None:
        """Gives the context what an earlier run changed, and the saga was never told."""
        self.shape.assign(self.context, {**self.whole, **patch}, patch)

    def response_data(self, response: Any) -> Any:
        """A response as JSON data. Raises `TypeError`, `InvalidPayload` or `LimitExceeded`."""
        if response is None:
            return None
        if isinstance(response, pydantic.BaseModel):
            data: Any = response.model_dump(mode="json")
            if not data:
                return data
        else:
            try:
                data = _adapter_of(type(response)).dump_python(response, mode="json")
            except (pydantic.errors.PydanticUserError, ValueError, TypeError) as error:
                raise TypeError(f"the response of step {self.step.step} cannot be written as JSON: {error}") from error
        codec.encode_response(data, what=f"{self.where}: the response")
        return data

    def events_data(self, events: Sequence[StepEvent]) -> tuple[dict[str, Any], ...]:
        """Events as JSON data. Raises `InvalidPayload`, `LimitExceeded`, or `TypeError` for what is no `StepEvent`."""
        if len(events) > EVENTS_MAX:
            raise LimitExceeded(f"{self.where}: its events", value=len(events), limit=EVENTS_MAX)
        found = []
        for event in events:
            if not isinstance(event, StepEvent):
                raise TypeError(f"{self.where}: an event is a {type(event).__name__}; make it a StepEvent(name, data)")
            is_model = isinstance(event.data, pydantic.BaseModel)
            data = event.data.model_dump(mode="json") if is_model else codec.copied(event.data)
            codec.encode_response(data, what=f"{self.where}: the event {event.name}")
            found.append({"name": event.name, "data": data})
        return tuple(found)

    def check_reply(self, patch: Mapping[str, Any], response: Any, events: Sequence[Mapping[str, Any]]) -> None:
        """Raises `LimitExceeded` for a result whose parts, each within its limit, are more than one message holds."""
        if not events:  # the other two have too little room for that
            return
        size = len(codec.dumps([patch, response, events]))
        if size > REPLY_BYTES_MAX:
            what = f"{self.where}: the size of its patch, response and events in bytes"
            raise LimitExceeded(what, value=size, limit=REPLY_BYTES_MAX)


_adapters: dict[Any, pydantic.TypeAdapter[Any]] = {}


def _adapter_of(cls: Any) -> pydantic.TypeAdapter[Any]:
    adapter = _adapters.get(cls)
    if adapter is None:
        adapter = _adapters[cls] = pydantic.TypeAdapter(cls)
    return adapter


def response_from_data(declared: Any, data: Any) -> Any:
    """A response from the wire, as the handler's declared type; as JSON data where that does not say or not fit."""
    if data is None or declared is Any or declared is None or declared is Response:
        return Response() if declared is Response and data == {} else data
    try:
        return _adapter_of(declared).validate_python(data)
    except pydantic.ValidationError:
        return data


_run: ContextVar[HandlerRun | None] = ContextVar("watership_handler_run", default=None)


def current_run() -> HandlerRun | None:
    """The run that the caller is in; None outside a handler."""
    return _run.get()
