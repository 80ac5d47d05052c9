"""Values: equal by their fields, hashable, and without room for anything else."""

from __future__ import annotations

import dataclasses

import pytest

from watership.values import value


@value
class Point:
    """A value."""

    x: int
    y: int = 0


def test_a_value_is_equal_by_its_fields_and_may_be_a_key() -> None:
    assert Point(1) == Point(1, 0) != Point(1, 1)
    assert {Point(1): "here"}[Point(1, 0)] == "here"
    assert dataclasses.replace(Point(1), y=2) == Point(1, 2)


def test_a_value_has_its_fields_and_no_others() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 1  # type: ignore[attr-defined]


def test_the_type_checker_lets_nobody_change_one() -> None:
    Point(1).x = 2  # type: ignore[misc]  # were it allowed, this comment would be one too many, and refused
