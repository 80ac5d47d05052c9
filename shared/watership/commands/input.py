"""The contexts that `watership start` is given: JSON in the argument, a file or standard input; one, or one a line.

All are read and checked before the first saga is started: a mistake in line 400 starts nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pydantic

from watership import codec
from watership.errors import ConfigurationError, InvalidPayload
from watership.messages import StartSaga

INPUT_BYTES_MAX = 1_073_741_824


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """What was given. ``contexts``: where each stands, for messages, and the context; ``many``: one for each line."""

    source: str
    contexts: list[tuple[str, dict[str, Any]]]
    many: bool


def read_contexts(argument: str) -> Given:
    """Reads ``JSON``, ``@FILE`` or ``@-``. Raises `InvalidPayload` with the line, `ConfigurationError`, `LimitExceeded`."""
    source, body = _read(argument)
    if not body.strip():
        raise InvalidPayload(f"{source} is empty: a context is a JSON object, {{}} at least")
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    if not argument.startswith("@") or len(lines) == 1 or not _is_whole(lines[0][1]):
        return Given(source, [(source, _context(body, source, None))], many=False)
    contexts = [(f"{source}, line {number}", _context(line, source, number)) for number, line in lines]
    return Given(source, contexts, many=True)


def start_body(name: str, saga_id: uuid.UUID, context: dict[str, Any], what: str) -> StartSaga:
    """The start of one saga. Raises `InvalidPayload` or `LimitExceeded` for what no orchestrator would take."""
    codec.check(name, what="the saga's name")
    codec.encode_context(context, what=f"{what}: the context")
    try:
        return StartSaga(saga=name, saga_id=saga_id, context=context)
    except pydantic.ValidationError as error:
        raise InvalidPayload(f"the saga's name: {error.errors()[0]['msg']}") from error


def _read(argument: str) -> tuple[str, bytes]:
    if not argument.startswith("@"):
        return "--context", argument.encode("utf-8", "surrogateescape")
    if argument == "@-":
        source, body = "standard input", sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    else:
        source = argument[1:]
        try:
            with Path(source).open("rb") as file:
                body = file.read(INPUT_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigurationError(f"{source or 'the file'} cannot be read: {error.strerror or error}") from error
    if len(body) > INPUT_BYTES_MAX:
        raise ConfigurationError(f"{source} is larger than {INPUT_BYTES_MAX:,} bytes: split it")
    return source, body.removeprefix(b"\xef\xbb\xbf")


def _is_whole(line: bytes) -> bool:
    """Whether the first line is JSON by itself, or wants to be: else the lines are one document, laid out."""
    try:
        json.loads(line)
    except ValueError:
        return line.strip().endswith(b"}")
    return True


def _context(body: bytes, source: str, line: int | None) -> dict[str, Any]:
    what = source if line is None else f"{source}, line {line}"
    try:
        value = codec.decode(body, what=what)
    except InvalidPayload as error:
        cause = error.__cause__
        if not isinstance(cause, json.JSONDecodeError):
            raise
        at = f"line {line or cause.lineno}, column {cause.colno}"
        raise InvalidPayload(f"{source}, {at}: this is not JSON that can be stored: {cause.msg}") from error
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")
        hint = "; many contexts go one on each line" if isinstance(value, list) else ""
        raise InvalidPayload(f"{what}: a context is a JSON object, this is {kind}{hint}")
    return value
