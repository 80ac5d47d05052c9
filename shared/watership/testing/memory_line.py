"""What stands between a simulated process and its database: at each statement it may wait, fail, or never come back."""

from __future__ import annotations

from typing import Protocol


class Line(Protocol):
    """A process's connection to the database."""

    async def point(self, what: str) -> None:
        """Called before each statement and around each commit: may wait, raise, or never return."""


class StraightLine:
    """A connection on which nothing goes wrong."""

    async def point(self, what: str) -> None:
        """Nothing happens."""
