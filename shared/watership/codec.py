"""Bytes to JSON and back, with limits (law 10). The only importer of orjson.

What some store or reader would refuse or silently change is refused here, by the field's name: NaN and infinity (not
JSON), NUL and lone surrogates (Postgres refuses them), integers over 64 bits (orjson rounds them), keys that are not
strings, and nesting beyond `DEPTH_MAX`. So nothing that passed can poison a batch later.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from watership.errors import InvalidPayload, LimitExceeded

CONTEXT_BYTES_MAX = 262_144
RESPONSE_BYTES_MAX = 262_144
MESSAGE_BYTES_MAX = 1_048_576
DEPTH_MAX = 100

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_SUSPECT = re.compile(rb"[0-9]{19}|\\u0000")
_SURROGATE = re.compile("[\ud800-\udfff]")


_NESTED = (dict, list)


def dumps(value: Any, *, default: Callable[[Any], Any] | None = None) -> bytes:
    """Compact JSON. ``value`` must have passed `check`, or be made of what did; ``default`` is asked for the rest."""
    return orjson.dumps(value, default=default)


def copied(value: Any) -> Any:
    """A copy of JSON data that shares nothing that could be changed in place."""
    if type(value) is dict:
        return {name: copied(item) if type(item) in _NESTED else item for name, item in value.items()}
    if type(value) is list:
        return [copied(item) if type(item) in _NESTED else item for item in value]
    return value


def loads(body: bytes | str) -> Any:
    """Reads JSON that `dumps` wrote. For bytes from elsewhere, use `decode`."""
    return orjson.loads(body)


def decode(body: bytes, *, what: str, bytes_max: int = MESSAGE_BYTES_MAX) -> Any:
    """Reads JSON from elsewhere. Raises `LimitExceeded` or `InvalidPayload`; ``what`` names it in the message."""
    if len(body) > bytes_max:
        raise LimitExceeded(f"{what}: its size in bytes", value=len(body), limit=bytes_max)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"{what} is not JSON that can be stored: {error}") from error
    if _SUSPECT.search(body):
        try:
            value = json.loads(body)  # slow, and exact: keeps an integer that orjson rounds, so that it can be refused
        except ValueError as error:  # Python refuses to read an integer of thousands of digits at all
            raise InvalidPayload(f"{what} holds an integer over 64 bits: send it as a string") from error
        except RecursionError as error:
            raise InvalidPayload(f"{what} is nested deeper than {DEPTH_MAX}") from error
        check(value, what=what)
    return value


def encode_context(context: Mapping[str, Any], *, what: str, bytes_max: int = CONTEXT_BYTES_MAX) -> bytes:
    """A context as JSON, checked. Raises `InvalidPayload` with the field's name, or `LimitExceeded`."""
    check(context, what=what)
    body = orjson.dumps(context)
    if len(body) > bytes_max:
        raise LimitExceeded(f"{what}: its size in bytes", value=len(body), limit=bytes_max)
    return body


def over_the_limit(context: Mapping[str, Any], patch: Mapping[str, Any], *, what: str) -> LimitExceeded | None:
    """Why a context has no room for a patch; None: it has. Both have passed `check`, each at its own edge."""
    size = len(orjson.dumps({**context, **patch}))
    if size <= CONTEXT_BYTES_MAX:
        return None
    return LimitExceeded(f"{what}: the context's size in bytes", value=size, limit=CONTEXT_BYTES_MAX)


def encode_response(response: Any, *, what: str) -> bytes:
    """A step's response as JSON, checked like a context: a reply must fit into a message with both."""
    check(response, what=what)
    body = orjson.dumps(response)
    if len(body) > RESPONSE_BYTES_MAX:
        raise LimitExceeded(f"{what}: its size in bytes", value=len(body), limit=RESPONSE_BYTES_MAX)
    return body


def check(value: Any, *, what: str) -> None:
    """Raises `InvalidPayload` with the path of the first value that could not be stored and read back alike."""
    trouble = _trouble(value, 0)
    if trouble is not None:
        path, reason = trouble
        raise InvalidPayload(f"{what}{path} {reason}")


def input_hash(name: str, context: Mapping[str, Any]) -> str:
    """What makes two starts the same: the SHA-256 of name and context, keys sorted; 32 hex digits."""
    return _hashed(orjson.dumps([name, context], option=orjson.OPT_SORT_KEYS))


def checked_hash(name: str, context: Mapping[str, Any], *, what: str) -> str:
    """The same of a context that is checked as `encode_context` checks it, and written once for both."""
    check(context, what=what)
    body = orjson.dumps([name, context], option=orjson.OPT_SORT_KEYS)
    size = len(body) - len(orjson.dumps(name)) - len(b"[,]") if len(body) > CONTEXT_BYTES_MAX else 0
    if size > CONTEXT_BYTES_MAX:
        raise LimitExceeded(f"{what}: its size in bytes", value=size, limit=CONTEXT_BYTES_MAX)
    return _hashed(body)


def _hashed(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def _trouble(value: Any, depth: int) -> tuple[str, str] | None:
    kind = type(value)
    if kind is str:
        return _string_trouble(value)
    if value is None or kind is bool:
        return None
    if kind is int:
        return None if _INT_MIN <= value <= _INT_MAX else ("", "is an integer over 64 bits: send it as a string")
    if kind is float:
        return None if math.isfinite(value) else ("", f"is {value}, which JSON does not have: send null or a string")
    if depth >= DEPTH_MAX:
        return ("", f"is nested deeper than {DEPTH_MAX}")
    if kind is dict:
        return _dict_trouble(value, depth)
    if kind is list or kind is tuple:
        for index, item in enumerate(value):
            trouble = _trouble(item, depth + 1)
            if trouble is not None:
                return (f"[{index}]{trouble[0]}", trouble[1])
        return None
    for base in (str, int, float, dict, list):  # a subclass, an enum say, is judged as what it is in JSON
        if isinstance(value, base):
            plain: Any = base
            return _trouble(plain(value), depth)
    return ("", f"is a {kind.__name__}, which is not JSON")


def _dict_trouble(value: dict[Any, Any], depth: int) -> tuple[str, str] | None:
    for key, item in value.items():
        if type(key) is str and _is_plain(key) and (item is None or (type(item) is str and _is_plain(item))):
            continue
        if not isinstance(key, str):
            return ("", f"has the key {key!r}, and JSON's keys are strings")
        trouble = _string_trouble(key) or _trouble(item, depth + 1)
        if trouble is not None:
            return (f".{key!a}{trouble[0]}" if not key.isidentifier() else f".{key}{trouble[0]}", trouble[1])
    return None


def _is_plain(value: str) -> bool:
    return value.isascii() and "\0" not in value


def _string_trouble(value: str) -> tuple[str, str] | None:
    if "\0" in value:
        return ("", "holds a NUL character, which PostgreSQL cannot store: remove it or encode it")
    if not value.isascii() and _SURROGATE.search(value):
        return ("", "holds a lone surrogate, which is not valid Unicode")
    return None
