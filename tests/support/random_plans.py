"""Random plans with every kind of node that pass the lint: what a hostile world is let loose on."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from watership.machine.lint import lint
from watership.machine.nodes import FallbackPlan, Node, ParallelPlan, RetryPlan, SleepPlan, StepPlan, Unit, WaitPlan
from watership.machine.plan import Plan

RETRY = st.builds(
    RetryPlan,
    attempts_max=st.integers(1, 3),
    delay_ms=st.sampled_from([0, 1_000]),
    final_codes=st.sampled_from([(), (), (), ("fatal",)]),
)
FORWARD = RetryPlan(attempts_max=None, delay_ms=1_000)
OFTEN = st.sampled_from([True, True, True, False])
SELDOM = st.sampled_from([False, False, False, True])
FLOW_KINDS = ["step", "step", "step", "fallback", "parallel", "sleep", "wait"]
BARE_KINDS = ["step", "step", "fallback"]


@st.composite
def steps(draw: st.DrawFn, name: str) -> StepPlan:
    return StepPlan(
        name,
        name,
        draw(RETRY),
        draw(RETRY),
        1_000,
        1_000,
        compensable=draw(OFTEN),
        verify_retry=draw(RETRY) if draw(st.booleans()) else None,
        rerun=draw(OFTEN),
    )


@st.composite
def fallbacks(draw: st.DrawFn, number: str) -> FallbackPlan:
    codes = st.sampled_from([(), ("boom",), ("other",)])
    return FallbackPlan(draw(steps(f"P{number}")), draw(steps(f"F{number}")), draw(codes))


@st.composite
def waits(draw: st.DrawFn, name: str) -> WaitPlan:
    return WaitPlan(
        name,
        draw(st.sampled_from([None, name.lower()])),
        draw(st.sampled_from([500, 20_000])),
        draw(st.sampled_from(["compensate", "continue"])),
        draw(st.sampled_from([None, ("ok", False)])),
    )


@st.composite
def nodes(draw: st.DrawFn, number: int, kinds: list[str]) -> Node:
    kind = draw(st.sampled_from(kinds))
    if kind == "parallel":
        members: list[Unit] = [
            draw(fallbacks(f"{number}{letter}")) if draw(SELDOM) else draw(steps(f"S{number}{letter}"))
            for letter in "abc"[: draw(st.integers(2, 3))]
        ]
        return ParallelPlan(tuple(members))
    if kind == "sleep":
        return SleepPlan(f"Z{number}", draw(st.sampled_from([500, 20_000])))
    if kind == "wait":
        return draw(waits(f"W{number}"))
    return draw(fallbacks(str(number))) if kind == "fallback" else draw(steps(f"S{number}"))


def past_the_pivot(node: Node) -> Node:
    """The node as the lint allows it there: nothing to undo, tried without end, and nothing turns the saga around."""
    match node:
        case StepPlan():
            return dataclasses.replace(
                node, compensable=False, retry=dataclasses.replace(FORWARD, final_codes=node.retry.final_codes)
            )
        case FallbackPlan():
            return past_the_pivot(node.primary)
        case ParallelPlan():
            return ParallelPlan(tuple(_unit(past_the_pivot(unit)) for unit in node.nodes))
        case WaitPlan():
            return dataclasses.replace(node, on_timeout="continue", reject_if=None)
        case _:
            return node


def _unit(node: Node) -> Unit:
    assert isinstance(node, StepPlan | FallbackPlan)
    return node


@st.composite
def plans(draw: st.DrawFn, kinds: Any = None) -> Plan:
    """Up to five nodes of ``kinds``; with a pivot and a deadline where they may be."""
    chosen = draw(st.sampled_from([FLOW_KINDS, FLOW_KINDS, BARE_KINDS])) if kinds is None else kinds
    found = [draw(nodes(number, chosen)) for number in range(draw(st.integers(1, 5)))]
    places = [place for place, node in enumerate(found) if isinstance(node, StepPlan)]
    pivot = None
    place = draw(st.sampled_from([None, *places])) if places and chosen is FLOW_KINDS else None
    if place is not None:
        found[place + 1 :] = [past_the_pivot(node) for node in found[place + 1 :]]
        chosen_node = found[place]
        assert isinstance(chosen_node, StepPlan)
        pivot = chosen_node.name
    deadline_ms = draw(st.sampled_from([None, None, 3_000])) if place != 0 else None
    lint("Random", found, pivot, deadline_ms)
    return Plan("Random", tuple(found), pivot=pivot, deadline_ms=deadline_ms)
