"""What the codec refuses, and by what name."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from watership import InvalidPayload, LimitExceeded, codec


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": {"b": [0, float("nan")]}}, r"the context\.a\.b\[1\] is nan, which JSON does not have"),
        ({"a": float("inf")}, r"the context\.a is inf"),
        ({"a": -float("inf")}, r"the context\.a is -inf"),
        ({"a": "x\0y"}, r"the context\.a holds a NUL"),
        ({"a\0": 1}, "holds a NUL"),
        ({"a": "\ud800"}, r"the context\.a holds a lone surrogate"),
        ({"\udfff": 1}, "holds a lone surrogate"),
        ({"a": 2**63}, r"the context\.a is an integer over 64 bits"),
        ({"a": -(2**63) - 1}, "an integer over 64 bits"),
        ({1: "a"}, "has the key 1, and JSON's keys are strings"),
        ({"a": {1, 2}}, r"the context\.a is a set, which is not JSON"),
        ({"a": b"x"}, "is a bytes"),
        ({"a b": float("nan")}, r"the context\.'a b' is nan"),
        ({"a": nested(101)}, "nested deeper than 100"),
    ],
)
def test_refused_by_the_fields_name(value: Any, words: str) -> None:
    with pytest.raises(InvalidPayload, match=words):
        codec.check(value, what="the context")
    with pytest.raises(InvalidPayload, match=words):
        codec.encode_context(value, what="the context")


@pytest.mark.parametrize(
    "value",
    [
        {"a": 2**63 - 1, "b": -(2**63), "c": 1.5, "d": None, "e": True, "f": "é😀", "g": [1, [2]], "h": {}},
        {"a": Colour.RED, "b": (1, 2)},
        {"a": nested(98)},
    ],
)
def test_what_passes_comes_back_alike(value: Any) -> None:
    body = codec.encode_context(value, what="the context")
    assert codec.decode(body, what="it") == codec.loads(codec.dumps(value))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "it is not JSON"),
        (b"", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b'{"a": NaN}', "it is not JSON"),
        (b'{"a": 18446744073709551616}', r"it\.a is an integer over 64 bits"),
        (b'{"a": 9223372036854775808}', r"it\.a is an integer over 64 bits"),
        (b'{"a": ' + b"[" * 1_000 + b"1234567890123456789" + b"]" * 1_000 + b"}", "it is nested deeper than 100"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "64 bits|it is not JSON that can be stored: number is infinity"),
        (b'{"a": "\\u0000"}', r"it\.a holds a NUL"),
        (b'{"a": "\\ud800"}', "it is not JSON that can be stored|lone surrogate"),
        (b"[" * 2_000 + b"]" * 2_000, "it is not JSON|nested deeper"),
        (b"[" * 500 + b"]" * 500, "nested deeper"),
    ],
)
def test_bytes_from_elsewhere(body: bytes, words: str) -> None:
    with pytest.raises(InvalidPayload, match=words):
        codec.check(codec.decode(body, what="it"), what="it")


def test_a_limit_names_itself_the_value_and_the_setting() -> None:
    with pytest.raises(LimitExceeded, match="it: its size in bytes is 12, the limit is 10; this version has no sett"):
        codec.decode(b'"0123456789"', what="it", bytes_max=10)
    with pytest.raises(LimitExceeded, match=r"is 262\d+, the limit is 262144; this version has no setting") as why:
        codec.encode_context({"a": "x" * 262_144}, what="the context")
    assert (why.value.limit, why.value.setting) == (262_144, None)
    codec.encode_context({"a": "x" * (262_144 - 8)}, what="the context")


def test_the_input_hash_sees_content_not_order() -> None:
    assert codec.input_hash("S", {"a": 1, "b": 2}) == codec.input_hash("S", {"b": 2, "a": 1})
    assert codec.input_hash("S", {"a": 1}) != codec.input_hash("S", {"a": "1"})
    assert codec.input_hash("S", {"a": 1}) != codec.input_hash("T", {"a": 1})
    assert len(codec.input_hash("S", {})) == 32
